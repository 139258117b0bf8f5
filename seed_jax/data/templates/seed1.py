"""Templates of SEED-OPT, the language model of the first paper: captions and images, one direction each (spec G)."""

import dataclasses

from seed_jax.data.templates.layout import (
    BaseTask,
    Fields,
    RandomChoices,
    RenderContext,
    SampleLayout,
    Segment,
    codes_of,
    is_empty,
    text_of,
)

CAPTION_PREFIX, IMAGE_PREFIX = "A photo of", "Generate an image"
EMPTY = "the caption is empty or only punctuation"


@dataclasses.dataclass(frozen=True)
class Caption(BaseTask):
    """Image to text: an image's code vectors, the prefix, then the caption, which alone is trained.

    Fields: `image_ids`, `text`.

    Attributes:
        prefix: text between image and caption.
    """

    prefix: str = CAPTION_PREFIX

    def render(self, fields: Fields, choice: RandomChoices, context: RenderContext) -> SampleLayout:
        caption = text_of(fields, "text").strip()
        prompt = Segment((codes_of(fields), self.prefix), trained=False, as_vectors=True)
        answer = Segment((caption,), trained=True, continues=True)
        return SampleLayout((prompt, answer), reason=EMPTY if is_empty(caption) else "")


@dataclasses.dataclass(frozen=True)
class Image(BaseTask):
    """Text to image: the prefix and a caption, then the image's tokens, which alone are trained.

    Fields: `image_ids`, `text`.

    Attributes:
        prefix: text before the caption.
    """

    prefix: str = IMAGE_PREFIX

    def render(self, fields: Fields, choice: RandomChoices, context: RenderContext) -> SampleLayout:
        caption = text_of(fields, "text").strip()
        prompt = Segment((f"{self.prefix} {caption}",), trained=False)
        image = Segment((codes_of(fields),), trained=True)
        return SampleLayout((prompt, image), reason=EMPTY if is_empty(caption) else "")

"""Further pre-training templates: retrieval-augmented pairs, and prompts without labels."""

import dataclasses
from typing import Any

import numpy as np

from seed_jax.data.templates.layout import (
    BaseTask,
    ContentPart,
    Fields,
    RandomChoices,
    RenderContext,
    SampleLayout,
    Segment,
    codes_of,
    text_of,
)
from seed_jax.data.templates.pretrain import draw_order
from seed_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class RetrievalAugmented:
    """An image-text pair, then retrieved pairs in random order.

    Fields: `image_ids`, `text`, `context` (a list of the same fields).

    Attributes:
        reverse_ratio: probability that the image comes first in every pair.
        max_images: maximum number of pairs, including the main one; None for all.
        random_num_images, min_images: draw the number of pairs uniformly from min_images to max_images.
        mask_left_label: train only the second half of each pair.
    """

    reverse_ratio: float = 0.5
    max_images: int | None = None
    random_num_images: bool = False
    min_images: int | None = None
    mask_left_label: bool = False

    def __post_init__(self):
        if self.random_num_images and self._image_range() is None:
            raise UserError(
                f"random_num_images needs 1 <= min_images <= max_images, got {self.min_images} and {self.max_images}."
            )

    def _image_range(self) -> tuple[int, int] | None:
        low = self.min_images
        high = self.max_images
        return (low, high) if low is not None and high is not None and 1 <= low <= high else None

    def choose(self, fields: Fields, context: RenderContext, rng: np.random.Generator) -> dict[str, Any]:
        available = len(fields.get("context") or ())
        pairs = 1 + available if self.max_images is None else self.max_images
        if self.random_num_images and (image_range := self._image_range()):
            pairs = int(rng.integers(*image_range, endpoint=True))
        drawn = rng.permutation(available)[: pairs - 1].tolist() if pairs > 1 and available else []
        return {"num_images": pairs, "context_order": drawn, "order": draw_order(rng, self.reverse_ratio)}

    def render(self, fields: Fields, choice: RandomChoices, context: RenderContext) -> SampleLayout:
        retrieved: list[Fields] = list(fields.get("context") or [])
        pairs: list[Fields] = [fields, *(retrieved[index] for index in choice["context_order"])]
        segments: list[Segment] = []
        for pair in pairs:
            halves: list[tuple[ContentPart, ...]] = [(codes_of(pair),), (text_of(pair, "text"),)]
            first, second = halves if choice["order"] == "image_first" else halves[::-1]
            segments += [Segment(first, trained=not self.mask_left_label), Segment(second, trained=True)]
        return SampleLayout(tuple(segments))


@dataclasses.dataclass(frozen=True)
class CaptionEvalPrompt(BaseTask):
    """Captioning prompt: in-context pairs, an image, optionally the beginning of the caption; no EOS, no labels.

    Fields: `image_ids`, and if num_context is not 0 `context` (list of `image_ids` and `text`).

    Attributes:
        num_context: number of in-context pairs.
        caption_prompt: beginning of the caption.
    """

    num_context: int = 0
    caption_prompt: str | None = None

    def render(self, fields: Fields, choice: RandomChoices, context: RenderContext) -> SampleLayout:
        examples = fields.get("context") if self.num_context else ()
        if examples is None:
            raise UserError(
                f"a record has no field 'context', expected in-context pairs for num_context {self.num_context}."
            )
        pairs = examples[: self.num_context]
        parts = [part for pair in pairs for part in (codes_of(pair), text_of(pair, "text"))]
        parts += [codes_of(fields), self.caption_prompt or ""]
        return SampleLayout((Segment(tuple(parts), trained=False),), eos=False, trained=False)


@dataclasses.dataclass(frozen=True)
class CaptionTextOnly(BaseTask):
    """The caption alone: BOS and the text, no EOS, no labels. Field: `text`."""

    def render(self, fields: Fields, choice: RandomChoices, context: RenderContext) -> SampleLayout:
        return SampleLayout((Segment((text_of(fields, "text"),), trained=False),), eos=False, trained=False)

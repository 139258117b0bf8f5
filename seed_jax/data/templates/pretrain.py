"""Pre-training templates: image-text pairs, documents, videos, plain text and edits (spec D.3); SEED-OPT's (spec G)."""

import dataclasses
from collections.abc import Iterator, Sequence
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
    is_empty,
    text_of,
)
from seed_jax.data.text.vocabulary import CODES_PER_IMAGE
from seed_jax.errors import UserError

EMPTY = "the text is empty or only punctuation"
SEED1_CAPTION_PREFIX, SEED1_IMAGE_PREFIX = "A photo of", "Generate an image"


@dataclasses.dataclass(frozen=True)
class ImageTextPair:
    """An image and its caption as one string, in either order. Fields: `image_ids`, `text` or `metadata`.

    Attributes:
        reverse_ratio: probability that the image comes first.
        mask_left_label: train only the tokens after `</img>` (image first) or after `<img>` (text first).
        caption_prompt: a prompt, or several to draw from, with `{}` for the caption.
        use_caption_in_metadata, caption_key_in_metadata: read the caption from the record's metadata.
    """

    reverse_ratio: float = 0.5
    mask_left_label: bool = False
    caption_prompt: str | Sequence[str] | None = None
    use_caption_in_metadata: bool = False
    caption_key_in_metadata: str = ""

    def __post_init__(self):
        for prompt in self._prompts():
            try:
                prompt.format("")
            except (IndexError, KeyError, ValueError) as error:
                raise UserError(f"caption_prompt {prompt!r} must have one {{}} for the caption ({error}).") from error

    def _prompts(self) -> tuple[str, ...]:
        prompts = self.caption_prompt
        return tuple((prompts,) if isinstance(prompts, str) else prompts or ())

    def choose(self, fields: Fields, context: RenderContext, rng: np.random.Generator) -> dict[str, Any]:
        prompts = self._prompts()
        drawn = {"prompt_index": int(rng.integers(len(prompts)))} if len(prompts) > 1 else {}
        return {**drawn, "order": draw_order(rng, self.reverse_ratio)}

    def render(self, fields: Fields, choice: RandomChoices, context: RenderContext) -> SampleLayout:
        if self.use_caption_in_metadata:
            text = text_of(fields.get("metadata") or {}, self.caption_key_in_metadata)
        else:
            text = text_of(fields, "text")
        prompts = self._prompts()
        caption = prompts[choice.get("prompt_index", 0)].format(text) if prompts else text
        image = codes_of(fields)
        image_first = choice["order"] == "image_first"
        return SampleLayout(
            (Segment((image, caption) if image_first else (caption, image), trained=True),),
            bos_trained=True,
            ignore_unk=True,
            mask_through=("eoi" if image_first else "boi") if self.mask_left_label else None,
            reason=EMPTY if is_empty(text) else "",
        )


@dataclasses.dataclass(frozen=True)
class Text(BaseTask):
    """Plain text. Field: `text`.

    Attributes:
        continued: tokens beyond `max_length` become further samples (`continuation.py`); the original drops them.
    """

    continued: bool = False

    def render(self, fields: Fields, choice: RandomChoices, context: RenderContext) -> SampleLayout:
        if "text" not in fields:
            return SampleLayout.dropped("the record has no text")
        text = text_of(fields, "text")
        reason = EMPTY if is_empty(text) else ""
        return SampleLayout((Segment((text,), trained=True),), bos_trained=True, ignore_unk=True, reason=reason)


@dataclasses.dataclass(frozen=True)
class Interleaved:
    """A document of texts and images, joined without separators.

    Fields: `image_ids`, `texts`: parallel lists. Each entry is an image (codes, None) or a text (None, string);
    anything else drops the document.

    Attributes:
        reverse_ratio: probability of swapping every image with the entry after it.
        max_images: the document ends after the text that follows this many images; None for no limit.
        continued: entries beyond `max_length` or `max_images` become further samples (`continuation.py`); the original
            drops them.
    """

    reverse_ratio: float = 0.5
    max_images: int | None = 7
    continued: bool = False

    def choose(self, fields: Fields, context: RenderContext, rng: np.random.Generator) -> dict[str, Any]:
        return {"swap": bool(rng.random() < self.reverse_ratio)}

    def render(self, fields: Fields, choice: RandomChoices, context: RenderContext) -> SampleLayout:
        images = codes_of(fields)
        texts = codes_of(fields, "texts")
        if context.strict_images and len(images) != len(texts):
            raise UserError(f"a document has {len(images)} image_ids and {len(texts)} texts, expected equal numbers.")
        entries = list(zip(images, texts, strict=False))
        parts: list[ContentPart] = []
        for part in self._walk(_swapped(entries) if choice["swap"] else entries):
            if part is None:
                return SampleLayout.dropped("an entry of the document is neither a text nor an image")
            parts.append(part)
        return SampleLayout((Segment(tuple(parts), trained=True),), bos_trained=True, ignore_unk=True)

    def _walk(self, entries: list[tuple[ContentPart | None, str | None]]) -> Iterator[ContentPart | None]:
        """Yield the content up to the image limit; None for a malformed entry."""
        images = 0
        full = False
        for image, text in entries:
            full = self.max_images is not None and images >= self.max_images and not self.continued
            if (image is None) == (text is None):
                yield None
            elif text is not None:
                yield text
            elif not full:
                images += 1
                yield image
            if full:
                return


def _swapped(entries: list[Any]) -> list[Any]:
    """Swap every image with the entry after it, moving past both; an image at the end stays."""
    entries = list(entries)
    index = 0
    while index < len(entries) - 1:
        if entries[index][0] is not None:
            entries[index], entries[index + 1] = entries[index + 1], entries[index]
            index += 1
        index += 1
    return entries


@dataclasses.dataclass(frozen=True)
class VideoCaption(BaseTask):
    """Frames (not trained), then a caption (trained) as a segment of its own. Fields: `image_ids` (flat), `answer`.

    Attributes:
        num_frames: number of frames used, from the first on.
        flat: False if `image_ids` is a list of images, all of which are used.
        image_id_length: codes per frame.
    """

    num_frames: int = 4
    flat: bool = True
    image_id_length: int = CODES_PER_IMAGE

    def render(self, fields: Fields, choice: RandomChoices, context: RenderContext) -> SampleLayout:
        if "answer" not in fields:
            return SampleLayout.dropped("the record has no caption (field 'answer')")
        frames = codes_of(fields)
        if self.flat:
            available = len(frames) // self.image_id_length if context.strict_images else self.num_frames
            if available < self.num_frames:
                raise UserError(f"a video has {available} frames, expected at least num_frames {self.num_frames}.")
            frames = context.split(frames, available, self.image_id_length)[: self.num_frames]
        caption = Segment((text_of(fields, "answer"),), trained=True)
        return SampleLayout((Segment(tuple(frames), trained=False), caption))


@dataclasses.dataclass(frozen=True)
class Edit(BaseTask):
    """Source image, instruction, target image; only the target is trained.

    Fields: `source_image_ids`, `target_image_ids`, `instruction`.
    """

    def render(self, fields: Fields, choice: RandomChoices, context: RenderContext) -> SampleLayout:
        # White space beside images is removed in any case; stripping it here lets the target be a segment of its own.
        instruction = text_of(fields, "instruction").replace(context.phrases.edit_prefix, "").strip()
        source = codes_of(fields, "source_image_ids")
        target = codes_of(fields, "target_image_ids")
        return SampleLayout(
            (Segment((source, instruction), trained=False), Segment((target,), trained=True)), ignore_unk=True
        )


@dataclasses.dataclass(frozen=True)
class Seed1Caption(BaseTask):
    """Image to text in SEED-OPT (spec G): an image's code vectors, the prefix, then the trained caption.

    Fields: `image_ids`, `text`.

    Attributes:
        prefix: text between image and caption.
    """

    prefix: str = SEED1_CAPTION_PREFIX

    def render(self, fields: Fields, choice: RandomChoices, context: RenderContext) -> SampleLayout:
        caption = text_of(fields, "text").strip()
        prompt = Segment((codes_of(fields), self.prefix), trained=False, as_vectors=True)
        answer = Segment((caption,), trained=True, continues=True)
        return SampleLayout((prompt, answer), reason=EMPTY if is_empty(caption) else "")


@dataclasses.dataclass(frozen=True)
class Seed1Image(BaseTask):
    """Text to image in SEED-OPT (spec G): the prefix and a caption, then the image's tokens, which alone are trained.

    Fields: `image_ids`, `text`.

    Attributes:
        prefix: text before the caption.
    """

    prefix: str = SEED1_IMAGE_PREFIX

    def render(self, fields: Fields, choice: RandomChoices, context: RenderContext) -> SampleLayout:
        caption = text_of(fields, "text").strip()
        prompt = Segment((f"{self.prefix} {caption}",), trained=False)
        image = Segment((codes_of(fields),), trained=True)
        return SampleLayout((prompt, image), reason=EMPTY if is_empty(caption) else "")


def draw_order(rng: np.random.Generator, image_first: float) -> str:
    """Draw the order of image and text; `image_first` is the probability of "image_first"."""
    return "image_first" if rng.random() < image_first else "text_first"

"""Less usual pre-training templates: retrieval-augmented pairs, and prompts without labels."""

import dataclasses
from typing import Any

import numpy as np

from seed_jax.data.templates.layout import Choice, Fields, Layout, Segment, Setting, codes_of, text_of
from seed_jax.data.templates.pretrain import order
from seed_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class RetrievalAugmented:
    """A pair, then other pairs like it in drawn order. Fields: `image_ids`, `text`, `context` (such fields again).

    Attributes:
        reverse_ratio: probability that the images come first, in all pairs alike.
        max_images: most pairs, the main one included; None for all.
        random_num_images, min_images: draw the number of pairs from min_images to max_images.
        mask_left_label: train only the second half of each pair.
    """

    reverse_ratio: float = 0.5
    max_images: int | None = None
    random_num_images: bool = False
    min_images: int | None = None
    mask_left_label: bool = False

    def __post_init__(self):
        low, high = self.min_images, self.max_images
        if self.random_num_images and not (low is not None and high is not None and 1 <= low <= high):
            raise UserError(f"random_num_images needs 1 <= min_images <= max_images, got {low} and {high}.")

    def choose(self, fields: Fields, setting: Setting, rng: np.random.Generator) -> dict[str, Any]:
        available = len(fields.get("context") or ())
        pairs = 1 + available if self.max_images is None else self.max_images
        if self.random_num_images:
            pairs = int(rng.integers(self.min_images, self.max_images, endpoint=True))
        drawn = rng.permutation(available)[: pairs - 1].tolist() if pairs > 1 and available else []
        return {"num_images": pairs, "context_order": drawn, "order": order(rng, self.reverse_ratio)}

    def render(self, fields: Fields, choice: Choice, setting: Setting) -> Layout:
        context = fields.get("context") or ()
        segments = []
        for pair in (fields, *(context[index] for index in choice["context_order"])):
            halves = [(codes_of(pair),), (text_of(pair, "text"),)]
            first, second = halves if choice["order"] == "image_first" else halves[::-1]
            segments += [Segment(first, trained=not self.mask_left_label), Segment(second, trained=True)]
        return Layout(tuple(segments))


@dataclasses.dataclass(frozen=True)
class CaptionEvalPrompt:
    """Captioning prompt: example pairs, an image, perhaps words to go on from; no EOS, no labels.

    Fields: `image_ids`, `context` (list of `image_ids` and `text`) where num_context is not 0.
    """

    num_context: int = 0
    caption_prompt: str | None = None

    def choose(self, fields: Fields, setting: Setting, rng: np.random.Generator) -> dict[str, Any]:
        return {}

    def render(self, fields: Fields, choice: Choice, setting: Setting) -> Layout:
        context = fields.get("context") if self.num_context else ()
        if context is None:
            raise UserError(f"a record has no field 'context', expected examples for num_context {self.num_context}.")
        examples = context[: self.num_context]
        parts = [part for pair in examples for part in (codes_of(pair), text_of(pair, "text"))]
        parts += [codes_of(fields), self.caption_prompt or ""]
        return Layout((Segment(tuple(parts), trained=False),), eos=False, trained=False)


@dataclasses.dataclass(frozen=True)
class CaptionTextOnly:
    """The caption alone: BOS and the text, no EOS, no labels. Field: `text`."""

    def choose(self, fields: Fields, setting: Setting, rng: np.random.Generator) -> dict[str, Any]:
        return {}

    def render(self, fields: Fields, choice: Choice, setting: Setting) -> Layout:
        return Layout((Segment((text_of(fields, "text"),), trained=False),), eos=False, trained=False)

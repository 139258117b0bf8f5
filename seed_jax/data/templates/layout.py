"""What a template produces before tokenisation: segments of text and images, and which of them are trained."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from seed_jax.data.templates.phrases import Phrases
from seed_jax.data.text.vocabulary import CODES_PER_IMAGE
from seed_jax.errors import UserError

# A stretch of text, or one image as its codes.
Part = str | Sequence | np.ndarray
# A record as a template sees it: "image_ids", "text", "question", ... (the keys are named by each task).
Fields = Mapping[str, Any]
# The outcome of every random decision a task makes for one record, spelled out by name.
Choice = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Segment:
    """Parts that are encoded as one string, apart from their neighbours: a segment begins with its own U+2581."""

    parts: tuple[Part, ...]
    trained: bool
    ends_turn: bool = False  # a reply; with the option for it, EOS follows


@dataclasses.dataclass(frozen=True)
class Layout:
    """A rendered record in the order of its tokens: BOS, the segments, EOS.

    Attributes:
        segments: None where the record cannot be rendered at all; then `reason` says why.
        bos_trained: the label of BOS. Nothing predicts BOS, but the original's pre-training readers set it.
        eos: whether EOS follows; it is trained unless `trained` is False.
        trained: False for prompts, which have no labels at all.
        ignore_unk: take id 0 out of the loss, as the original's pre-training readers do.
        mask_through: "boi" or "eoi": take everything up to and including the first such token out of the loss.
        reason: not empty: the filters drop this sample, and why.
    """

    segments: tuple[Segment, ...] | None
    bos_trained: bool = False
    eos: bool = True
    trained: bool = True
    ignore_unk: bool = False
    mask_through: str | None = None
    reason: str = ""

    @classmethod
    def dropped(cls, reason: str) -> "Layout":
        return cls(segments=None, reason=reason)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a task knows besides its record and parameters: the phrases and how many codes an image has."""

    phrases: Phrases
    strict_images: bool = True

    def split(self, codes: Part, count: int | None = None, size: int = CODES_PER_IMAGE) -> list[np.ndarray]:
        """Cut a flat list of codes into images of `size`: `count` of them, or as many as it holds.

        UserError where the list does not hold exactly that many, unless `strict_images` is off: then what is missing
        gives short or empty images and what is too much is left out, as in the original.
        """
        codes = np.asarray(codes)
        wanted = len(codes) // size if count is None else count
        if self.strict_images and (codes.ndim != 1 or len(codes) != wanted * size or not wanted):
            raise UserError(
                f"image_ids of a record has shape {list(codes.shape)}, expected "
                f"{'a multiple of' if count is None else f'{count} images of'} {size} codes in one flat list: "
                "correct the record, or pass strict_images=False to render what is there."
            )
        return [codes[place * size : (place + 1) * size] for place in range(wanted)]


def text_of(fields: Fields, key: str) -> str:
    """Return the text under `key`; UserError where there is none."""
    value = fields.get(key)
    if not isinstance(value, str):
        found = f"{type(value).__name__} in" if key in fields else "no"
        raise UserError(f"a record has {found} the field {key!r}, expected text: check how the data set was converted.")
    return value


def codes_of(fields: Fields, key: str = "image_ids") -> Part:
    """Return the codes under `key`; UserError where there are none."""
    value = fields.get(key)
    if value is None or isinstance(value, str):
        raise UserError(
            f"a record has no codes in the field {key!r}: tokenise its pictures first (seed-jax data build)."
        )
    return value


def with_full_stop(text: str) -> str:
    """Close `text` with a full stop unless it ends with one; other marks do not count."""
    return text if text.endswith(".") else text + "."


def is_empty(text: str) -> bool:
    """Say whether nothing but blanks and punctuation is there: exactly the characters that the original strips."""
    return not text.strip(" ;,[]{}'\".?:")

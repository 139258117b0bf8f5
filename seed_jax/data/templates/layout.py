"""What a template produces before tokenization: segments of text and images, and which of them are trained."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from seed_jax.data.templates.phrases import Phrases
from seed_jax.data.text.vocabulary import CODES_PER_IMAGE
from seed_jax.errors import UserError

ContentPart = str | Sequence[Any] | np.ndarray
"""A text, or one image as its codes."""

Fields = Mapping[str, Any]
"""The fields of a record that a template reads: "image_ids", "text", "question", ... (listed by each task)."""

RandomChoices = Mapping[str, Any]
"""The outcome of every random choice of a task for one record, by name."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """Content that is encoded as one string, separately from its neighbours: it begins with its own U+2581.

    Attributes:
        parts: texts and images.
        trained: whether its tokens are trained.
        ends_turn: whether it is a reply, after which EOS may be inserted (`eos_between_turns`).
        as_vectors: whether its images are code vectors (`Vocabulary.vector_ids`) instead of tokens.
        continues: whether its first word continues the text of the segment before it.
    """

    parts: tuple[ContentPart, ...]
    trained: bool
    ends_turn: bool = False
    as_vectors: bool = False
    continues: bool = False


@dataclasses.dataclass(frozen=True)
class SampleLayout:
    """A rendered record in token order: BOS, the segments, EOS.

    Attributes:
        segments: None if the record cannot be rendered; `reason` then says why.
        bos_trained: the loss mask of BOS. Nothing predicts BOS, but the original's pre-training readers set it.
        eos: whether EOS follows; it is trained unless `trained` is False.
        trained: False for prompts, which have no labels.
        ignore_unk: remove token id 0 from the loss, as the original's pre-training readers do.
        mask_through: "boi" or "eoi": remove everything up to and including the first such token from the loss.
        reason: why the sample is dropped; empty if it is kept.
    """

    segments: tuple[Segment, ...] | None
    bos_trained: bool = False
    eos: bool = True
    trained: bool = True
    ignore_unk: bool = False
    mask_through: str | None = None
    reason: str = ""

    @classmethod
    def dropped(cls, reason: str) -> "SampleLayout":
        return cls(segments=None, reason=reason)


@dataclasses.dataclass(frozen=True)
class RenderContext:
    """What a task knows besides its record and parameters.

    Attributes:
        phrases: the phrases around records.
        strict_images: whether images must have exactly 32 codes.
    """

    phrases: Phrases
    strict_images: bool = True

    def split(self, codes: Any, count: int | None = None, size: int = CODES_PER_IMAGE) -> list[np.ndarray]:
        """Split a flat list of codes into images.

        Args:
            codes: codes of all images, integers [count * size].
            count: number of images, or None for as many as the list holds.
            size: codes per image.

        Raises:
            UserError: the list does not hold exactly `count` images. With `strict_images` off, missing codes give
                short or empty images and surplus codes are dropped, as in the original.
        """
        codes = np.asarray(codes)
        num_images = len(codes) // size if count is None else count
        if self.strict_images and (codes.ndim != 1 or len(codes) != num_images * size or not num_images):
            raise UserError(
                f"image_ids of a record has shape {list(codes.shape)}, expected "
                f"{'a multiple of' if count is None else f'{count} images of'} {size} codes in one flat list: "
                "correct the record, or pass strict_images=False to render what is there."
            )
        return [codes[index * size : (index + 1) * size] for index in range(num_images)]


@runtime_checkable
class TaskDefinition(Protocol):
    """The parameters and rules of one task; its attributes are the task's parameters."""

    def choose(self, fields: Fields, context: RenderContext, rng: np.random.Generator) -> dict[str, Any]:
        """Make all random choices for one record."""
        ...

    def render(self, fields: Fields, choice: RandomChoices, context: RenderContext) -> SampleLayout:
        """Lay out one record deterministically."""
        ...


class BaseTask:
    """Base class of tasks: makes no random choices unless a task overrides `choose`."""

    def choose(self, fields: Fields, context: RenderContext, rng: np.random.Generator) -> dict[str, Any]:
        return {}


def text_of(fields: Fields, key: str) -> str:
    """Return the text under `key`; UserError if there is none."""
    value = fields.get(key)
    if not isinstance(value, str):
        problem = f"a {type(value).__name__} in" if key in fields else "no"
        raise UserError(f"a record has {problem} field {key!r}, expected text: check how the dataset was converted.")
    return value


def codes_of(fields: Fields, key: str = "image_ids") -> Any:
    """Return the codes under `key`; UserError if there are none."""
    value = fields.get(key)
    if value is None or isinstance(value, str):
        raise UserError(f"a record has no codes in field {key!r}: tokenize its images with `seed-jax data build`.")
    return value


def with_full_stop(text: str) -> str:
    """Append a full stop unless `text` ends with one; other punctuation does not count."""
    return text if text.endswith(".") else text + "."


def is_empty(text: str) -> bool:
    """Whether a text consists of blanks and punctuation only: exactly the characters that the original strips."""
    return not text.strip(" ;,[]{}'\".?:")

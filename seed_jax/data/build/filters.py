"""Filters of pictures: similarity to the text, size and shape, as the original's tools have them (spec D.5)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from seed_jax.errors import UserError

# What the original made its corpora with.
ORIGINAL = {"min_similarity": 0.25, "min_size": 180, "max_aspect": 1 / 0.55}
_KEYS = ("all_similarities", "similarity", "score")


@dataclasses.dataclass(frozen=True)
class Filtered:
    """A sample that a filter leaves out; `reason` is for counting."""

    id: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Filters:
    """What a picture must have; None lets everything pass.

    Attributes:
        min_similarity: of picture and text, from the metadata (the largest of `all_similarities`, else `similarity`,
            else `score`); samples that do not state it pass.
        min_size: pixels of the shorter side.
        max_aspect: longer side divided by shorter side.
    """

    min_similarity: float | None = None
    min_size: int | None = None
    max_aspect: float | None = None

    def __post_init__(self):
        if self.max_aspect is not None and not self.max_aspect >= 1:
            raise UserError(f"--max-aspect {self.max_aspect} must be at least 1: it is longer side / shorter side.")
        if self.min_size is not None and self.min_size < 1:
            raise UserError(f"--min-size {self.min_size} must be at least 1 pixel.")

    def settings(self) -> dict[str, Any]:
        """Return the filters that are set, for plan and manifest."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def refuse_similarity(self, value: float | None) -> str | None:
        """Return why a picture of this similarity is left out, or None."""
        if self.min_similarity is None or value is None or value >= self.min_similarity:
            return None
        return f"similarity below {self.min_similarity:g}"

    def refuse_size(self, width: int, height: int) -> str | None:
        """Return why a picture of this size is left out, or None."""
        short, long = sorted((width, height))
        if self.min_size is not None and short < self.min_size:
            return f"side shorter than {self.min_size} pixels"
        if self.max_aspect is not None and long > self.max_aspect * short:
            return f"aspect ratio above {self.max_aspect:.4g}"
        return None


def similarity(meta: Mapping[str, Any]) -> float | None:
    """Return the similarity that a sample's metadata state, or None."""
    for key in _KEYS:
        value = meta.get(key)
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        if values and all(isinstance(each, int | float) and not isinstance(each, bool) for each in values):
            return float(max(values))
    return None

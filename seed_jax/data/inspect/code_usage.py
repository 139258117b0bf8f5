"""How often the codes of a data set are used."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from seed_jax.data.shards.shards import open_shards
from seed_jax.errors import UserError

_BAR = 40  # characters of the longest bar


@dataclasses.dataclass(frozen=True, eq=False)
class CodeStats:
    """The histogram of a codebook.

    Attributes:
        counts: uses of each code, int64 [K].
        pictures: number of pictures counted.
    """

    counts: np.ndarray
    pictures: int

    @property
    def used(self) -> int:
        """The number of codes that occur."""
        return int(np.count_nonzero(self.counts))

    @property
    def perplexity(self) -> float:
        """The number of codes that an even use with the same entropy would have; 0 without pictures."""
        if not self.pictures:
            return 0.0
        p = self.counts[self.counts > 0] / self.counts.sum()
        return float(np.exp(-(p * np.log(p)).sum()))

    def lines(self) -> list[str]:
        """Return the numbers and a histogram of uses a code, in powers of two, for the terminal."""
        size = len(self.counts)
        share = self.used / size if size else 0.0
        head = [
            f"codes: {self.pictures} pictures, {self.counts.sum()} codes",
            f"used: {self.used} of {size} ({share:.1%}); perplexity {self.perplexity:.1f}; dead {size - self.used}",
        ]
        levels = np.zeros(size, np.int64)
        levels[self.counts > 0] = 1 + np.log2(self.counts[self.counts > 0]).astype(np.int64)
        totals = np.bincount(levels, minlength=1)
        labels = ["0", *(f"{1 << level}-{(2 << level) - 1}" for level in range(len(totals) - 1))]
        bars = ["#" * round(_BAR * total / max(totals.max(), 1)) for total in totals]
        rows = zip(labels, totals, bars, strict=True)
        return [*head, "uses      codes", *(f"{label:>9} {total:>5} {bar}".rstrip() for label, total, bar in rows)]


def code_stats(codes: Iterable[np.ndarray], num_codes: int) -> CodeStats:
    """Count the codes of pictures (integers [32] each)."""
    counts, pictures = np.zeros(num_codes, np.int64), 0
    for each in codes:
        if each.max() >= num_codes:
            raise UserError(f"A picture has code {each.max()}, but the codebook has {num_codes} codes.")
        np.add.at(counts, each, 1)
        pictures += 1
    return CodeStats(counts, pictures)


def shard_code_stats(directory: str | Path, num_codes: int = 8192) -> CodeStats:
    """Count the codes of all pictures in a directory of shards (reads every record)."""
    records = open_shards(directory)
    return code_stats((i for record in records for i in record.items if isinstance(i, np.ndarray)), num_codes)

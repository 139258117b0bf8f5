"""Codebook usage of a dataset: histogram, number of used codes, perplexity, most frequent codes."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from seed_jax.data.shards.shards import open_shards
from seed_jax.errors import UserError

_BAR_WIDTH = 40  # characters of the longest bar


@dataclasses.dataclass(frozen=True, eq=False)
class CodeStats:
    """Usage of the codes of a codebook.

    Attributes:
        counts: number of uses of each code.
        num_images: number of images counted.
    """

    counts: Int64[np.ndarray, " K"]
    num_images: int

    @property
    def used(self) -> int:
        """Number of codes that occur."""
        return int(np.count_nonzero(self.counts))

    @property
    def perplexity(self) -> float:
        """exp(entropy) of the code distribution; 0 without images."""
        if not self.num_images:
            return 0.0
        p = self.counts[self.counts > 0] / self.counts.sum()
        return float(np.exp(-(p * np.log(p)).sum()))

    def lines(self) -> list[str]:
        """Return the figures and a histogram of uses per code, in powers of two, for the terminal."""
        size = len(self.counts)
        fraction = self.used / size if size else 0.0
        head = [
            f"codes: {self.num_images} images, {self.counts.sum()} codes",
            f"used: {self.used} of {size} ({fraction:.1%}); perplexity {self.perplexity:.1f}; "
            f"unused {size - self.used}",
        ]
        levels = np.zeros(size, np.int64)
        levels[self.counts > 0] = 1 + np.log2(self.counts[self.counts > 0]).astype(np.int64)
        totals = np.bincount(levels, minlength=1)
        labels = ["0", *(f"{1 << level}-{(2 << level) - 1}" for level in range(len(totals) - 1))]
        bars = ["#" * round(_BAR_WIDTH * total / max(totals.max(), 1)) for total in totals]
        rows = zip(labels, totals, bars, strict=True)
        return [*head, "uses      codes", *(f"{label:>9} {total:>5} {bar}".rstrip() for label, total, bar in rows)]


def code_stats(codes: Iterable[np.ndarray], num_codes: int) -> CodeStats:
    """Count the codes of images.

    Args:
        codes: the codes of each image, integers [32].
        num_codes: size of the codebook.
    """
    counts = np.zeros(num_codes, np.int64)
    num_images = 0
    for image_codes in codes:
        if image_codes.max() >= num_codes:
            raise UserError(f"An image has code {image_codes.max()}, but the codebook has {num_codes} codes.")
        np.add.at(counts, image_codes, 1)
        num_images += 1
    return CodeStats(counts, num_images)


def shard_code_stats(directory: str | Path, num_codes: int = 8192) -> CodeStats:
    """Count the codes of all images in a shard directory (reads every record)."""
    return code_stats(_image_codes([directory]), num_codes)


def most_frequent_codes(directories: Sequence[str | Path], max_images: int | None = None) -> list[int]:
    """Return the most frequent code of each position: the first draft of parallel decoding.

    Args:
        directories: shard directories.
        max_images: how many images are counted; by default all.

    Raises:
        UserError: the shards hold no codes, or codes of different image tokenizers.
    """
    manifests = [open_shards(directory).manifest for directory in directories]
    if len({manifest.tokenizer for manifest in manifests if manifest.items.get("codes")}) > 1:
        raise UserError(
            f"{', '.join(map(str, directories))}: the codes are of different image tokenizers; name shards of one."
        )
    images = np.array([*itertools.islice(_image_codes(directories), max_images)], np.int64)
    if not len(images):
        raise UserError(
            f"{', '.join(map(str, directories))}: the shards hold no codes of images; build them with an image "
            "tokenizer (--model)."
        )
    return [int(np.bincount(column).argmax()) for column in images.T]


def _image_codes(directories: Sequence[str | Path]) -> Iterator[np.ndarray]:
    for directory in directories:
        for record in open_shards(directory):
            yield from (item for item in record.items if isinstance(item, np.ndarray))

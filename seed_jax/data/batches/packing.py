"""Packing: several samples in one row of fixed length, separated by `segment_ids`.

A sample is never split, hence neither is an image. `targets` and `loss_mask` are shifted by one within a segment: the
mask at a position says whether the *next* token, its target, is trained; the last token of a segment has no target.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from seed_jax.data.templates.sample import RenderedSample

PAD = 0
PackedBatch = dict[str, np.ndarray]
"""`tokens, targets, segment_ids, positions` (int32) and `loss_mask` (float32), each [batch, sequence_length]."""


@dataclasses.dataclass(frozen=True, eq=False)
class PendingSample:
    """A rendered sample and its number in the stream, from which it can be rendered again.

    Attributes:
        number: sample number in the stream.
        sample: the rendered sample.
        piece: index among the samples of that number, if a long document gave several.
    """

    number: int
    sample: RenderedSample
    piece: int = 0

    def __len__(self) -> int:
        return len(self.sample.tokens)


def next_row(
    pending: list[PendingSample], draw: Callable[[], PendingSample | None], length: int, look_ahead: int
) -> list[PendingSample]:
    """Choose the samples of one row: first fit among `pending`, oldest first, then among newly drawn samples.

    Args:
        pending: samples that earlier rows had no room for; on return, the samples still without a row, in order.
        draw: returns the next sample, of 1 to `length` tokens, or None if there are no more.
        length: tokens of the row.
        look_ahead: maximum number of samples that wait for a later row while the search for one that fits goes on.
    """
    row: list[PendingSample] = []
    waiting: list[PendingSample] = []
    space = length
    candidates = iter(pending)
    while space:
        sample = next(candidates, None)
        if sample is None and (len(waiting) < look_ahead or not row):
            sample = draw()
        if sample is None:
            break
        fits = len(sample) <= space
        (row if fits else waiting).append(sample)
        space -= len(sample) if fits else 0
    pending[:] = [*waiting, *candidates]
    return row


def empty_batch(batch_size: int, length: int) -> PackedBatch:
    """Return a batch of zeros."""
    names = ("tokens", "targets", "segment_ids", "positions")
    batch = {name: np.zeros((batch_size, length), np.int32) for name in names}
    return batch | {"loss_mask": np.zeros((batch_size, length), np.float32)}


def fill_row(batch: PackedBatch, row: int, samples: Sequence[RenderedSample]) -> None:
    """Write samples consecutively into a row of zeros."""
    if not samples:
        return
    lengths = np.array([len(sample.tokens) for sample in samples])
    ends = np.cumsum(lengths)
    starts = ends - lengths
    total = ends[-1]
    tokens = np.concatenate([sample.tokens for sample in samples])
    trained = np.concatenate([sample.loss_mask for sample in samples])
    batch["tokens"][row, :total] = tokens
    batch["targets"][row, : total - 1] = tokens[1:]
    batch["targets"][row, ends - 1] = PAD
    batch["loss_mask"][row, : total - 1] = trained[1:]
    batch["loss_mask"][row, ends - 1] = 0
    batch["segment_ids"][row, :total] = np.repeat(np.arange(1, len(samples) + 1), lengths)
    batch["positions"][row, :total] = np.arange(total) - np.repeat(starts, lengths)


def pack(samples: Sequence[RenderedSample], length: int, *, look_ahead: int = 32) -> PackedBatch:
    """Pack samples of at most `length` tokens into as many rows as needed."""
    rest = itertools.starmap(PendingSample, enumerate(samples))
    pending: list[PendingSample] = []
    rows = []
    while row := next_row(pending, lambda: next(rest, None), length, look_ahead):
        rows.append(row)
    batch = empty_batch(len(rows), length)
    for index, row in enumerate(rows):
        fill_row(batch, index, [numbered.sample for numbered in row])
    return batch


@dataclasses.dataclass(frozen=True)
class PackingStats:
    """Utilization of a batch.

    Attributes:
        tokens: number of positions that hold a token.
        trained: sum of the loss mask.
        samples: number of segments.
        efficiency: tokens / positions.
    """

    tokens: int
    trained: float
    samples: int
    efficiency: float


def packing_stats(batch: PackedBatch) -> PackingStats:
    """Count the tokens, trained tokens and samples of a batch."""
    tokens = int(np.count_nonzero(batch["segment_ids"]))
    return PackingStats(
        tokens=tokens,
        trained=float(batch["loss_mask"].sum()),
        samples=int(batch["segment_ids"].max(-1).sum()),
        efficiency=tokens / batch["segment_ids"].size,
    )

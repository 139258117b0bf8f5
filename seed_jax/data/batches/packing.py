"""Packing: several samples in one row of fixed length, told apart by `segment_ids`.

A sample is never split, hence no image is. `targets` and `loss_mask` are shifted by one within a segment: the mask at
a position says whether the *next* token, its target, is trained, and a segment's last token has no target.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from seed_jax.data.templates.sample import Sample

PAD = 0
Batch = dict[str, np.ndarray]
"""`tokens, targets, segment_ids, positions` (int32) and `loss_mask` (float32), each [rows, length]."""


@dataclasses.dataclass(frozen=True, eq=False)
class Numbered:
    """A rendered sample and its number in the stream, by which it can be had again.

    Attributes:
        piece: which of the samples of that number it is, where a long document has given several.
    """

    number: int
    sample: Sample
    piece: int = 0

    def __len__(self) -> int:
        return len(self.sample.tokens)


def take_row(
    pending: list[Numbered], draw: Callable[[], Numbered | None], length: int, look_ahead: int
) -> list[Numbered]:
    """Choose the samples of one row: first fit among `pending`, oldest first, then among newly drawn ones.

    Args:
        pending: samples that earlier rows had no room for; those still without a row are left in it, in order.
        draw: returns the next sample, of 1 to `length` tokens, or None when there are no more.
        look_ahead: how many samples may wait for a later row while one that fits is looked for.
    """
    row, waiting, space = [], [], length
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


def empty_batch(rows: int, length: int) -> Batch:
    batch = {name: np.zeros((rows, length), np.int32) for name in ("tokens", "targets", "segment_ids", "positions")}
    return batch | {"loss_mask": np.zeros((rows, length), np.float32)}


def fill_row(batch: Batch, row: int, samples: Sequence[Sample]) -> None:
    """Write samples one after the other into a row of zeros."""
    if not samples:
        return
    lengths = np.array([len(sample.tokens) for sample in samples])
    ends = np.cumsum(lengths)
    starts, total = ends - lengths, ends[-1]
    tokens = np.concatenate([sample.tokens for sample in samples])
    trained = np.concatenate([sample.loss_mask for sample in samples])
    batch["tokens"][row, :total] = tokens
    batch["targets"][row, : total - 1] = tokens[1:]
    batch["targets"][row, ends - 1] = PAD
    batch["loss_mask"][row, : total - 1] = trained[1:]
    batch["loss_mask"][row, ends - 1] = 0
    batch["segment_ids"][row, :total] = np.repeat(np.arange(1, len(samples) + 1), lengths)
    batch["positions"][row, :total] = np.arange(total) - np.repeat(starts, lengths)


def pack(samples: Sequence[Sample], length: int, *, look_ahead: int = 32) -> Batch:
    """Pack a finite number of samples, none longer than `length`, into as many rows as it takes."""
    rest, pending, rows = itertools.starmap(Numbered, enumerate(samples)), [], []
    while row := take_row(pending, lambda: next(rest, None), length, look_ahead):
        rows.append(row)
    batch = empty_batch(len(rows), length)
    for index, row in enumerate(rows):
        fill_row(batch, index, [numbered.sample for numbered in row])
    return batch


@dataclasses.dataclass(frozen=True)
class PackingStats:
    """How full a batch is.

    Attributes:
        tokens: positions that hold a token.
        trained: sum of the loss mask.
        samples: number of segments.
        useful_share: tokens / positions.
    """

    tokens: int
    trained: float
    samples: int
    useful_share: float


def packing_stats(batch: Batch) -> PackingStats:
    """Count what a batch holds."""
    tokens = int(np.count_nonzero(batch["segment_ids"]))
    return PackingStats(
        tokens=tokens,
        trained=float(batch["loss_mask"].sum()),
        samples=int(batch["segment_ids"].max(-1).sum()),
        useful_share=tokens / batch["segment_ids"].size,
    )

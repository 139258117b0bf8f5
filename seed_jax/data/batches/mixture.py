"""Which record is sample number i: mixing by weight and shuffling as functions of (seed, i), without any state.

Sample numbers run on for ever. Each block of 64 holds the parts in the proportions of their weights (counted from the
beginning, exact to one sample) in a pseudo-random order, so that whoever takes every n-th sample sees the mixture too.
A part's k-th sample is record `permutation(k mod size)` of its epoch `k // size`: an epoch has every record once.
A part may have a number of epochs; after them the others go on in their proportions, and the numbers of its last block
that it cannot fill stay empty.

All functions take many sample numbers at once; nothing needs memory in proportion to the data.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from seed_jax.errors import UserError

BLOCK = 64
_ORDER = 1 << 62  # tells the key of the order of parts from those of the parts
LENGTH = 1 << 42  # sample numbers of a mixture without an end
_ENDLESS = 1 << 62
_SHARES = 1 << 20  # weights become whole numbers with this sum; sample numbers up to 2**42 then fit into int64
_ROUNDS = 6


@dataclasses.dataclass(frozen=True)
class Places:
    """Where samples come from, elementwise: part, epoch of that part, number of the record in it (int64 [N]).

    Part -1 stands for a number without a sample.
    """

    part: np.ndarray
    epoch: np.ndarray
    record: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Phase:
    """A stretch of sample numbers in which the same parts take turns.

    Attributes:
        start: its first sample number, a multiple of BLOCK.
        shares: whole-number weight of each part; 0 for those that are used up.
        before: samples that each part had before, int64 [parts].
    """

    start: int
    shares: tuple[int, ...]
    before: np.ndarray

    def counts(self, numbers: np.ndarray) -> np.ndarray:
        """Return how many of the first `numbers` samples belong to each part: [parts, N], monotone in `numbers`."""
        counts, rest, remaining = [], numbers, sum(self.shares)
        for share in self.shares:
            others = rest * (remaining - share) // max(remaining, 1)
            counts.append(rest - others)
            rest, remaining = others, remaining - share
        return np.stack(counts)


class Mixture:
    """Map sample numbers to records of several parts.

    Args:
        sizes: number of records of each part.
        weights: share of each part among the samples, in any unit.
        shuffle: without it, records come in the order of their part.
        cycles: epochs of each part; None for a part that never ends.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float | int],
        seed: int,
        *,
        shuffle: bool = True,
        cycles: Sequence[int | None] | None = None,
    ):
        cycles = [None] * len(sizes) if cycles is None else cycles
        if not sizes or not len(sizes) == len(weights) == len(cycles) or min(sizes) < 1:
            raise UserError(f"A mixture needs records and a weight for every part; sizes {sizes}, weights {weights}.")
        if not all(np.isfinite(weight) and weight > 0 for weight in weights):
            raise UserError(f"The weights of a mixture must be positive numbers, got {list(weights)}.")
        if not all(each is None or each >= 1 for each in cycles):
            raise UserError(f"The cycles of a mixture must be 1 or more, or None for no end, got {list(cycles)}.")
        self._sizes = np.array(sizes, np.int64)
        self._limits = np.array(
            [_ENDLESS if each is None else size * each for size, each in zip(sizes, cycles, strict=True)], np.int64
        )
        # A Feistel network permutes an even number of bits: half of them here, half there.
        self._half_bits = np.array([((int(size) - 1).bit_length() + 1) // 2 for size in sizes], np.uint64)
        self._seed, self._shuffle = seed, shuffle
        self._phases, self.length = self._plan(weights)
        self._starts = np.array([phase.start for phase in self._phases], np.int64)

    def places(self, samples: np.ndarray) -> Places:
        """Return the records of the samples with these numbers (int64 [N])."""
        samples = np.asarray(samples, np.int64)
        part, nth = self._part_and_count(samples)
        empty = (nth >= self._limits[part]) | (samples >= self.length)
        size = self._sizes[part]
        epoch, record = nth // size, nth % size
        if self._shuffle:
            key = hashed(hashed(self._seed, part), epoch)
            record = _permute(record, size, self._half_bits[part], key)
        return Places(np.where(empty, -1, part), epoch, record)

    def _plan(self, weights: Sequence[float | int]) -> tuple[list[_Phase], int]:
        """Return the phases, and the number of samples there are."""
        phases, start, before = [], 0, np.zeros(len(weights), np.int64)
        while (active := before < self._limits).any() and start < LENGTH:
            total = sum(weight for weight, each in zip(weights, active, strict=True) if each)
            shares = tuple(
                max(1, round(weight / total * _SHARES)) if each else 0
                for weight, each in zip(weights, active, strict=True)
            )
            phases.append(_Phase(start, shares, before))
            length = min(self._blocks_until_used_up(phases[-1]) * BLOCK, LENGTH - start)
            before = np.minimum(before + phases[-1].counts(np.array([length]))[:, 0], self._limits)
            start += length
        return phases, start

    def _blocks_until_used_up(self, phase: _Phase) -> int:
        """Return after how many blocks the first of the phase's parts has no more records."""
        low, high = 0, (LENGTH - phase.start) // BLOCK
        while high - low > 1:
            middle = (low + high) // 2
            counts = phase.before + phase.counts(np.array([middle * BLOCK]))[:, 0]
            ended = ((counts >= self._limits) & (np.array(phase.shares) > 0)).any()
            low, high = (low, middle) if ended else (middle, high)
        return high

    def _part_and_count(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the part of each sample, and how many samples of that part come before it."""
        if len(self._phases) == 1:
            return self._in_phase(self._phases[0], samples)
        part, nth = np.zeros_like(samples), np.zeros_like(samples)
        of_phase = np.searchsorted(self._starts, samples, "right") - 1
        for number in np.unique(of_phase):
            inside = of_phase == number
            part[inside], nth[inside] = self._in_phase(self._phases[number], samples[inside])
        return part, nth

    def _in_phase(self, phase: _Phase, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        block, place = np.divmod(samples, BLOCK)
        first = block * BLOCK - phase.start
        before, after = phase.counts(first), phase.counts(first + BLOCK)
        ends = np.cumsum(after - before, axis=0)  # [parts, N]: the slots of a block go to the parts in turn
        key = hashed(hashed(self._seed, _ORDER), block)
        slots = np.argsort(hashed(key[:, None], np.arange(BLOCK)), axis=1, kind="stable")  # [N, BLOCK]: shuffled
        parts = (slots >= ends[:, :, None]).sum(0)
        part = np.take_along_axis(parts, place[:, None], 1)[:, 0]
        earlier = ((parts == part[:, None]) & (np.arange(BLOCK) < place[:, None])).sum(1)
        return part, phase.before[part] + before[part, np.arange(len(samples))] + earlier


def hashed(seed: int | np.ndarray | np.uint64, number: int | np.ndarray) -> np.ndarray | np.uint64:
    """Return well-mixed uint64 of (seed, number), elementwise; the finaliser is that of splitmix64."""
    with np.errstate(over="ignore"):
        seed = np.asarray(seed).astype(np.uint64)
        x = _mixed(seed + np.uint64(0x9E3779B97F4A7C15)) ^ np.asarray(number).astype(np.uint64)
        return _mixed(x + np.uint64(0x9E3779B97F4A7C15))


def _mixed(x: np.ndarray | np.uint64) -> np.ndarray | np.uint64:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _permute(index: np.ndarray, size: np.ndarray, half_bits: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Apply to each index the permutation of range(size) that belongs to `key`."""
    out = index.astype(np.uint64)
    todo = np.arange(len(out))
    # Walk on along the cycle until the value is in range: still a permutation of the range.
    while len(todo):
        out[todo] = _feistel(out[todo], half_bits[todo], key[todo])
        todo = todo[out[todo] >= size[todo].astype(np.uint64)]
    return out.astype(np.int64)


def _feistel(x: np.ndarray, half_bits: np.ndarray, key: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = x >> half_bits, x & mask
    with np.errstate(over="ignore"):
        for turn in range(_ROUNDS):
            left, right = right, left ^ (_mixed(key + np.uint64(turn) * np.uint64(0xD1B54A32D192ED03) + right) & mask)
    return (left << half_bits) | right

"""Mixing and shuffling without state: the record of sample number i is a function of (seed, i).

Sample numbers are unbounded. Each block of 64 holds the components in proportion to their weights (counted from the
beginning, exact to one sample) in pseudo-random order, so that every n-th sample follows the mixture as well. The k-th
sample of a component is record `permutation(k mod size)` of its epoch `k // size`: an epoch contains every record
once. A component may end after a number of epochs; the others then continue in their proportions, and the sample
numbers that its last block cannot fill stay empty.

All functions are vectorized over sample numbers; memory does not grow with the data.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from seed_jax.errors import UserError

BLOCK = 64
LENGTH = 1 << 42  # sample numbers of an unbounded mixture
_UNBOUNDED = 1 << 62
_ORDER_KEY = 1 << 62  # distinguishes the key of the component order from those of the components
_TOTAL_SHARES = 1 << 20  # weights become integers with this sum; sample numbers up to 2**42 then fit into int64
_ROUNDS = 6


@dataclasses.dataclass(frozen=True)
class SampleLocations:
    """Origin of samples: component, epoch of that component, and record number in it (int64 [N] each).

    Component -1 marks an empty sample number.
    """

    component: np.ndarray
    epoch: np.ndarray
    record: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Phase:
    """A range of sample numbers in which the set of active components is constant.

    Attributes:
        start: its first sample number, a multiple of BLOCK.
        shares: integer weight of each component; 0 for exhausted components.
        before: samples of each component before `start`, int64 [components].
    """

    start: int
    shares: tuple[int, ...]
    before: np.ndarray

    def counts(self, numbers: np.ndarray) -> np.ndarray:
        """Return how many of the first `numbers` samples belong to each component.

        Args:
            numbers: int64 [N].

        Returns:
            int64 [components, N], monotone in `numbers`.
        """
        counts = []
        rest = numbers
        remaining = sum(self.shares)
        for share in self.shares:
            others = rest * (remaining - share) // max(remaining, 1)
            counts.append(rest - others)
            rest = others
            remaining -= share
        return np.stack(counts)


class Mixture:
    """Maps sample numbers to records of several components.

    Args:
        sizes: number of records of each component.
        weights: share of each component among the samples, in any unit.
        seed: seed of order and shuffling.
        shuffle: whether to shuffle the records of a component anew in every epoch.
        cycles: epochs of each component; None for an unbounded component.
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
            raise UserError(
                f"Every component of a mixture needs records and a weight; sizes {sizes}, weights {weights}."
            )
        if not all(np.isfinite(weight) and weight > 0 for weight in weights):
            raise UserError(f"The weights of a mixture must be positive numbers, got {list(weights)}.")
        if not all(epochs is None or epochs >= 1 for epochs in cycles):
            raise UserError(f"The cycles of a mixture must be at least 1, or None for no end, got {list(cycles)}.")
        self._sizes = np.array(sizes, np.int64)
        limits = [_UNBOUNDED if epochs is None else size * epochs for size, epochs in zip(sizes, cycles, strict=True)]
        self._limits = np.array(limits, np.int64)
        # A Feistel network permutes numbers of an even number of bits, split into two halves.
        self._half_bits = np.array([((int(size) - 1).bit_length() + 1) // 2 for size in sizes], np.uint64)
        self._seed = seed
        self._shuffle = shuffle
        self._phases, self.length = self._plan_phases(weights)
        self._starts = np.array([phase.start for phase in self._phases], np.int64)

    def locate(self, numbers: np.ndarray) -> SampleLocations:
        """Return the records of the samples with these numbers (int64 [N])."""
        numbers = np.asarray(numbers, np.int64)
        component, nth = self._component_and_count(numbers)
        empty = (nth >= self._limits[component]) | (numbers >= self.length)
        size = self._sizes[component]
        epoch = nth // size
        record = nth % size
        if self._shuffle:
            key = hash64(hash64(self._seed, component), epoch)
            record = _permute(record, size, self._half_bits[component], key)
        return SampleLocations(np.where(empty, -1, component), epoch, record)

    def _plan_phases(self, weights: Sequence[float | int]) -> tuple[list[_Phase], int]:
        """Return the phases and the total number of samples."""
        phases = []
        start = 0
        before = np.zeros(len(weights), np.int64)
        while (active := before < self._limits).any() and start < LENGTH:
            total = sum(weight for weight, is_active in zip(weights, active, strict=True) if is_active)
            shares = tuple(
                max(1, round(weight / total * _TOTAL_SHARES)) if is_active else 0
                for weight, is_active in zip(weights, active, strict=True)
            )
            phases.append(_Phase(start, shares, before))
            length = min(self._blocks_until_exhausted(phases[-1]) * BLOCK, LENGTH - start)
            before = np.minimum(before + phases[-1].counts(np.array([length]))[:, 0], self._limits)
            start += length
        return phases, start

    def _blocks_until_exhausted(self, phase: _Phase) -> int:
        """Return after how many blocks the first active component of the phase has no more records."""
        low = 0
        high = (LENGTH - phase.start) // BLOCK
        while high - low > 1:
            middle = (low + high) // 2
            counts = phase.before + phase.counts(np.array([middle * BLOCK]))[:, 0]
            exhausted = ((counts >= self._limits) & (np.array(phase.shares) > 0)).any()
            low, high = (low, middle) if exhausted else (middle, high)
        return high

    def _component_and_count(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the component of each sample, and how many samples of that component precede it."""
        if len(self._phases) == 1:
            return self._in_phase(self._phases[0], numbers)
        component = np.zeros_like(numbers)
        nth = np.zeros_like(numbers)
        phase_numbers = np.searchsorted(self._starts, numbers, "right") - 1
        for phase_number in np.unique(phase_numbers):
            inside = phase_numbers == phase_number
            component[inside], nth[inside] = self._in_phase(self._phases[phase_number], numbers[inside])
        return component, nth

    def _in_phase(self, phase: _Phase, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        block, slot = np.divmod(numbers, BLOCK)
        first = block * BLOCK - phase.start
        before = phase.counts(first)
        after = phase.counts(first + BLOCK)
        ends = np.cumsum(after - before, axis=0)  # [components, N]: a block assigns its slots in component order
        key = hash64(hash64(self._seed, _ORDER_KEY), block)
        slots = np.argsort(hash64(key[:, None], np.arange(BLOCK)), axis=1, kind="stable")  # [N, BLOCK]: shuffled
        components = (slots >= ends[:, :, None]).sum(0)
        component = np.take_along_axis(components, slot[:, None], 1)[:, 0]
        earlier = ((components == component[:, None]) & (np.arange(BLOCK) < slot[:, None])).sum(1)
        return component, phase.before[component] + before[component, np.arange(len(numbers))] + earlier


def hash64(seed: Any, number: Any) -> np.ndarray:
    """Hash (seed, number) elementwise to uint64, with the finalizer of splitmix64."""
    with np.errstate(over="ignore"):
        seed = np.asarray(seed).astype(np.uint64)
        x = _mix(seed + np.uint64(0x9E3779B97F4A7C15)) ^ np.asarray(number).astype(np.uint64)
        return np.asarray(_mix(x + np.uint64(0x9E3779B97F4A7C15)))


def _mix(x: Any) -> Any:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _permute(index: np.ndarray, size: np.ndarray, half_bits: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Apply the permutation of range(size) selected by `key` to each index."""
    permuted = index.astype(np.uint64)
    todo = np.arange(len(permuted))
    # Cycle walking: iterate until the value is in range, which restricts the permutation to the range.
    while len(todo):
        permuted[todo] = _feistel(permuted[todo], half_bits[todo], key[todo])
        todo = todo[permuted[todo] >= size[todo].astype(np.uint64)]
    return permuted.astype(np.int64)


def _feistel(x: np.ndarray, half_bits: np.ndarray, key: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left = x >> half_bits
    right = x & mask
    with np.errstate(over="ignore"):
        for number in range(_ROUNDS):
            mixed = _mix(key + np.uint64(number) * np.uint64(0xD1B54A32D192ED03) + right)
            left, right = right, left ^ (mixed & mask)
    return (left << half_bits) | right

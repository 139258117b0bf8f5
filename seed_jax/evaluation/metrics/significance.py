"""Confidence intervals of scores, and the significance of the difference between two runs on the same samples."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float, Int

from seed_jax.errors import UserError

_BLOCK = 2**22  # random numbers that are held at once


@dataclasses.dataclass(frozen=True)
class Interval:
    """A score and its bootstrap confidence interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class PairedComparison:
    """The difference of two runs' mean scores (first minus second), its interval, and its p-value."""

    difference: float
    low: float
    high: float
    p_value: float


def bootstrap_interval(
    scores: Float[np.ndarray, " samples"],
    statistic: Callable[[Float[np.ndarray, " samples"]], float] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Return the percentile bootstrap interval of a statistic, by default the mean.

    Args:
        scores: one score for each sample.
        statistic: what is computed from the samples' scores.
        level: the share of resamples that lie in the interval.
        resamples: how often samples are drawn with replacement.
        seed: of the random numbers: equal seeds give equal intervals.
    """
    scores = _checked(scores)
    drawn = np.concatenate(
        [
            scores[indices].mean(1) if statistic is None else np.array([statistic(scores[row]) for row in indices])
            for indices in _resampled(len(scores), resamples, seed)
        ]
    )
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(scores.mean() if statistic is None else statistic(scores)), float(low), float(high))


def paired_bootstrap(
    one: Float[np.ndarray, " samples"],
    other: Float[np.ndarray, " other_samples"],
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> PairedComparison:
    """Compare the mean scores of two runs by resampling the samples that both scored.

    The two-sided p-value is twice the share of resamples whose difference has the other sign or is zero.
    """
    difference = _paired(one, other)
    drawn = np.concatenate([difference[indices].mean(1) for indices in _resampled(len(difference), resamples, seed)])
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    against = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p_value = min(1.0, 2 * (against + 1) / (resamples + 1))
    return PairedComparison(float(difference.mean()), float(low), float(high), float(p_value))


def approximate_randomization(
    one: Float[np.ndarray, " samples"],
    other: Float[np.ndarray, " other_samples"],
    *,
    shuffles: int = 1000,
    seed: int = 0,
) -> float:
    """Return the two-sided p-value of the difference of means when each sample's two scores may change places."""
    difference = _paired(one, other)
    observed = abs(difference.sum())
    generator = np.random.Generator(np.random.Philox(seed))
    rows = max(1, _BLOCK // len(difference))
    extreme = 0
    for start in range(0, shuffles, rows):
        signs = generator.integers(0, 2, (min(rows, shuffles - start), len(difference)), dtype=np.int8) * 2 - 1
        # Sums that differ by rounding alone are equal.
        extreme += int((np.abs(signs @ difference) >= observed * (1 - 1e-12)).sum())
    return (extreme + 1) / (shuffles + 1)


def mcnemar(one: Bool[np.ndarray, " samples"], other: Bool[np.ndarray, " other_samples"]) -> float:
    """Return the exact two-sided p-value of McNemar's test on right and wrong answers to the same questions."""
    _check_lengths(one, other)
    only_one = int((one & ~other).sum())
    only_other = int((other & ~one).sum())
    if not only_one + only_other:
        return 1.0
    return float(scipy.stats.binomtest(only_one, only_one + only_other).pvalue)


def _resampled(samples: int, resamples: int, seed: int) -> Iterator[Int[np.ndarray, "rows samples"]]:
    generator = np.random.Generator(np.random.Philox(seed))
    rows = max(1, _BLOCK // samples)
    for start in range(0, resamples, rows):
        yield generator.integers(0, samples, (min(rows, resamples - start), samples))


def _paired(
    one: Float[np.ndarray, " samples"], other: Float[np.ndarray, " other_samples"]
) -> Float[np.ndarray, " samples"]:
    _check_lengths(one, other)
    return _checked(one) - _checked(other)


def _check_lengths(one: np.ndarray, other: np.ndarray) -> None:
    if len(one) != len(other):
        raise UserError(
            f"The two runs scored {len(one)} and {len(other)} samples: compare runs on the same samples only."
        )


def _checked(scores: Float[np.ndarray, " samples"]) -> Float[np.ndarray, " samples"]:
    scores = np.asarray(scores, np.float64)
    if not len(scores):
        raise UserError("There is no score to compare: the run has no samples.")
    if not np.isfinite(scores).all():
        raise UserError("A score is not finite: score the run again.")
    return scores

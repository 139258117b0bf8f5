"""Intervals cover what they should, and p-values are small for real differences only."""

import numpy as np
import pytest
import scipy.stats

from seed_jax.errors import UserError
from seed_jax.evaluation.metrics.significance import (
    approximate_randomization,
    bootstrap_interval,
    mcnemar,
    paired_bootstrap,
)


def normal(key, *shape):
    return np.random.Generator(np.random.Philox(key)).standard_normal(shape)


def test_interval_of_the_mean_is_that_of_the_normal_approximation():
    scores = normal(1, 2000)
    interval = bootstrap_interval(scores, resamples=4000)
    half_width = 1.96 * scores.std() / 2000**0.5
    assert interval.value == pytest.approx(scores.mean())
    assert interval.low == pytest.approx(scores.mean() - half_width, abs=half_width / 10)
    assert interval.high == pytest.approx(scores.mean() + half_width, abs=half_width / 10)


def test_interval_of_another_statistic():
    scores = np.arange(101.0)
    interval = bootstrap_interval(scores, lambda values: float(np.median(values)), resamples=500)
    assert interval.low < interval.value == 50 < interval.high


def test_equal_seeds_give_equal_intervals():
    scores = normal(2, 50)
    assert bootstrap_interval(scores, seed=3) == bootstrap_interval(scores, seed=3)
    assert bootstrap_interval(scores, seed=3) != bootstrap_interval(scores, seed=4)


def test_paired_runs_that_differ_a_little_everywhere_differ_significantly():
    one = normal(5, 200) * 10
    other = one - 0.1 - 0.05 * normal(6, 200)
    comparison = paired_bootstrap(one, other)
    assert comparison.difference == pytest.approx((one - other).mean())
    assert 0 < comparison.low < comparison.difference < comparison.high
    assert comparison.p_value < 0.01
    assert approximate_randomization(one, other) < 0.01


def test_paired_runs_that_differ_by_chance_do_not():
    one, other = normal(7, 200), normal(8, 200)
    expected = scipy.stats.ttest_rel(one, other).pvalue
    assert approximate_randomization(one, other, shuffles=20000) == pytest.approx(expected, abs=0.02)
    assert paired_bootstrap(one, other, resamples=20000).p_value == pytest.approx(expected, abs=0.02)


def test_equal_runs_have_a_p_value_of_one():
    scores = normal(9, 20)
    assert paired_bootstrap(scores, scores).p_value == 1.0
    assert approximate_randomization(scores, scores) == 1.0
    assert mcnemar(scores > 0, scores > 0) == 1.0


def test_mcnemar_by_hand():
    # Five questions that only the first run answers, none that only the second does: 2 / 2^5.
    one = np.array([True] * 5 + [True, False])
    other = np.array([False] * 5 + [True, False])
    assert mcnemar(one, other) == pytest.approx(2 / 2**5)


def test_runs_on_different_samples_are_an_error():
    for compare in (paired_bootstrap, approximate_randomization):
        with pytest.raises(UserError, match="3 and 4 samples"):
            compare(np.zeros(3), np.zeros(4))
    with pytest.raises(UserError, match="3 and 4 samples"):
        mcnemar(np.zeros(3, bool), np.zeros(4, bool))


def test_no_scores_are_an_error():
    with pytest.raises(UserError, match="no samples"):
        bootstrap_interval(np.zeros(0))

"""Agreement and probe against values that are computed by hand, or by definition."""

import numpy as np
import pytest

from seed_jax.recipes.emoji.code_metrics import ProbeData, agreement, overlap, probe_accuracy


def test_agreement_counts_equal_positions_and_orders_pairs():
    codes = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    other = np.array([[1, 2, 3, 0], [5, 0, 3, 4]])
    # Same symbol: 3 and 1 of 4. Different symbols: 2 (codes 3, 4) and 0.
    found = agreement(codes, [other])
    assert found.same == pytest.approx((3 + 1) / 8)
    assert found.different == pytest.approx((2 + 0) / 8)
    # 3 beats 2 and 0; 1 beats 0 only.
    assert found.auc == pytest.approx(3 / 4)


def test_agreement_of_equal_codes_says_nothing():
    codes = np.zeros((5, 32), int)
    assert agreement(codes, [codes, codes]).auc == 0.5


def test_agreement_equals_its_definition_on_random_codes():
    rng = np.random.default_rng(0)
    codes, others = rng.integers(0, 3, (300, 8)), [rng.integers(0, 3, (300, 8)) for _ in range(2)]
    others[0][:100] = codes[:100]
    same, different = [], []
    for other in others:
        overlaps = overlap(codes, other)
        same += list(np.diag(overlaps))
        different += list(overlaps[~np.eye(300, dtype=bool)])
    same, different = np.array(same), np.array(different)
    larger = np.mean([(value > different).mean() + (value == different).mean() / 2 for value in same])
    found = agreement(codes, others)
    assert found.auc == pytest.approx(larger)
    assert (found.same, found.different) == pytest.approx((same.mean() / 8, different.mean() / 8))


def test_a_probe_finds_the_position_that_tells_the_class_and_nothing_in_noise():
    rng = np.random.default_rng(0)

    def data(count, informative):
        labels = rng.integers(0, 4, count)
        codes = rng.integers(0, 50, (count, 16))
        if informative:
            codes[:, 3] = labels
        return ProbeData(codes, labels)

    assert min(probe_accuracy(data(150, True), data(50, True), [data(100, True), data(20, True)])) == 1.0
    (chance,) = probe_accuracy(data(150, False), data(50, False), [data(200, False)])
    assert 0.1 < chance < 0.4

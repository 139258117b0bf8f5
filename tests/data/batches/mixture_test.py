from collections import Counter

import numpy as np
import pytest

from seed_jax.data.batches.mixture import BLOCK, Mixture
from seed_jax.errors import UserError

SIZES, WEIGHTS = (1000, 37, 1, 5), (5, 2, 0.5, 0.5)


@pytest.fixture(scope="module")
def locations():
    return Mixture(SIZES, WEIGHTS, seed=3).locate(np.arange(20_000))


def test_every_epoch_has_every_record_once_and_epochs_come_in_order(locations):
    for part, size in enumerate(SIZES):
        epochs, visited = locations.epoch[locations.component == part], locations.record[locations.component == part]
        whole = len(epochs) // size
        assert whole > 5
        np.testing.assert_array_equal(epochs, np.arange(len(epochs)) // size)
        for epoch in visited[: whole * size].reshape(whole, size):
            assert sorted(epoch.tolist()) == list(range(size))


def test_weights_hold_from_the_beginning(locations):
    # Cumulative counts at block borders are within one sample of the exact share (plus the rounding of the weights).
    for end in range(BLOCK, 20_000, 7 * BLOCK):
        counts = np.bincount(locations.component[:end], minlength=4)
        np.testing.assert_allclose(counts, np.array(WEIGHTS) / 8 * end, atol=1.5)


@pytest.mark.parametrize("stride", [2, 8, 64, 256])
def test_every_nth_sample_follows_the_mixture(stride):
    taken = Mixture(SIZES, WEIGHTS, seed=3).locate(np.arange(0, 4000 * stride, stride))
    share = np.bincount(taken.component, minlength=4) / 4000
    # Five standard deviations of a binomial share of 5/8 in 4000 draws; a periodic order would miss by far more.
    np.testing.assert_allclose(share, np.array(WEIGHTS) / 8, atol=0.04)


def test_a_location_depends_on_seed_and_number_only(locations):
    numbers = np.random.default_rng(0).permutation(20_000)[:500]
    asked = Mixture(SIZES, WEIGHTS, seed=3).locate(numbers)
    np.testing.assert_array_equal(asked.component, locations.component[numbers])
    np.testing.assert_array_equal(asked.record, locations.record[numbers])
    other = Mixture(SIZES, WEIGHTS, seed=4).locate(np.arange(20_000))
    assert (other.record != locations.record).mean() > 0.5


def test_each_epoch_has_its_own_order():
    locations = Mixture([64], [1], seed=0).locate(np.arange(64 * 50)).record.reshape(50, 64)
    assert len({tuple(epoch) for epoch in locations.tolist()}) == 50
    # Every record comes first about as often as any other: no place is fixed.
    assert max(Counter(locations[:, 0].tolist()).values()) <= 6


def test_permutations_of_a_small_range_are_all_drawn_about_equally():
    drawn = Counter(map(tuple, Mixture([3], [1], seed=1).locate(np.arange(6000)).record.reshape(-1, 3).tolist()))
    assert len(drawn) == 6
    # 2000 draws of 6 orders: 333 each, standard deviation 17; a Feistel network of 4 values is not perfectly even.
    assert min(drawn.values()) > 200


def test_without_shuffling_a_component_keeps_its_order():
    locations = Mixture([5, 3], [1, 1], seed=0, shuffle=False).locate(np.arange(64))
    np.testing.assert_array_equal(locations.record[locations.component == 0], np.arange(32) % 5)
    np.testing.assert_array_equal(locations.record[locations.component == 1], np.arange(32) % 3)


def test_large_numbers_do_not_overflow():
    locations = Mixture([600_000_000, 3], [1, 2], seed=0).locate(np.arange((1 << 42) - 200, 1 << 42))
    assert (locations.record >= 0).all()
    assert locations.record[locations.component == 0].max() < 600_000_000
    # Weights are kept in samples of 2**-20, so after 2**42 samples a count is off by up to 2**22.
    np.testing.assert_allclose(locations.epoch[locations.component == 1], (1 << 42) * 2 / 9, rtol=1e-5)


@pytest.mark.parametrize("weights", [[1, 0], [1, -1], [1, float("nan")], [1]])
def test_impossible_weights(weights):
    with pytest.raises(UserError, match=r"weight"):
        Mixture([5, 5], weights, seed=0)


def test_components_end_after_their_cycles_and_the_others_continue():
    sizes, weights, cycles = (100, 30, 50), (2, 1, 1), (3, 2, None)
    mixture = Mixture(sizes, weights, seed=5, cycles=cycles)
    locations = mixture.locate(np.arange(3000))
    assert mixture.length > 1 << 40
    for part in (0, 1):
        visited = locations.record[locations.component == part]
        assert Counter(visited.tolist()) == dict.fromkeys(range(sizes[part]), cycles[part])  # none lost, none twice
    # 60 records at a quarter of the samples last 240 numbers, 300 at two thirds of what follows, another 360.
    last = [int(np.flatnonzero(locations.component == part)[-1]) for part in (0, 1)]
    assert 200 < last[1] < 320
    assert 420 < last[0] < 640
    share = (locations.component[last[1] + BLOCK : last[1] + BLOCK + 128] == 0).mean()
    assert share == pytest.approx(2 / 3, abs=0.02)
    assert (locations.component[640:] == 2).all()
    assert 0 < (locations.component == -1).sum() < 2 * BLOCK  # the rest of the two blocks in which a part ended


def test_a_mixture_of_finite_components_is_finite():
    mixture = Mixture([10, 33], [1, 1], seed=0, cycles=[2, 1])
    locations = mixture.locate(np.arange(200))
    assert mixture.length == 128
    assert Counter(locations.component.tolist()) == {0: 20, 1: 33, -1: 147}
    assert Counter(locations.record[locations.component == 0].tolist()) == dict.fromkeys(range(10), 2)


def test_cycles_do_not_change_what_comes_before_the_end():
    locations = [Mixture([50, 70], [1, 2], seed=1, cycles=cycles).locate(np.arange(64)) for cycles in (None, [1, 9])]
    np.testing.assert_array_equal(locations[0].component, locations[1].component)
    np.testing.assert_array_equal(locations[0].record, locations[1].record)


@pytest.mark.parametrize("seed", range(10))
def test_any_cycles_are_kept(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 6))
    sizes, weights = rng.integers(1, 300, count).tolist(), (0.01 + rng.random(count)).tolist()
    cycles = rng.integers(1, 5, count).tolist()
    mixture = Mixture(sizes, weights, seed, cycles=cycles)
    locations = mixture.locate(np.arange(mixture.length + 100))
    for part in range(count):
        visited = Counter(locations.record[locations.component == part].tolist())
        assert visited == dict.fromkeys(range(sizes[part]), cycles[part])


def test_impossible_cycles():
    with pytest.raises(UserError, match="cycles of a mixture must be at least 1"):
        Mixture([5], [1], seed=0, cycles=[0])

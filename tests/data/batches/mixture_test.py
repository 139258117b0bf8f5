from collections import Counter

import numpy as np
import pytest

from seed_jax.data.batches.mixture import BLOCK, Mixture
from seed_jax.errors import UserError

SIZES, WEIGHTS = (1000, 37, 1, 5), (5, 2, 0.5, 0.5)


@pytest.fixture(scope="module")
def places():
    return Mixture(SIZES, WEIGHTS, seed=3).places(np.arange(20_000))


def test_every_epoch_has_every_record_once_and_epochs_come_in_order(places):
    for part, size in enumerate(SIZES):
        epochs, visited = places.epoch[places.part == part], places.record[places.part == part]
        whole = len(epochs) // size
        assert whole > 5
        np.testing.assert_array_equal(epochs, np.arange(len(epochs)) // size)
        for epoch in visited[: whole * size].reshape(whole, size):
            assert sorted(epoch.tolist()) == list(range(size))


def test_weights_hold_from_the_beginning(places):
    # Cumulative counts at block borders are within one sample of the exact share (plus the rounding of the weights).
    for end in range(BLOCK, 20_000, 7 * BLOCK):
        counts = np.bincount(places.part[:end], minlength=4)
        np.testing.assert_allclose(counts, np.array(WEIGHTS) / 8 * end, atol=1.5)


@pytest.mark.parametrize("stride", [2, 8, 64, 256])
def test_whoever_takes_every_nth_sample_sees_the_mixture_too(stride):
    taken = Mixture(SIZES, WEIGHTS, seed=3).places(np.arange(0, 4000 * stride, stride))
    share = np.bincount(taken.part, minlength=4) / 4000
    # Five standard deviations of a binomial share of 5/8 in 4000 draws; a periodic order would miss by far more.
    np.testing.assert_allclose(share, np.array(WEIGHTS) / 8, atol=0.04)


def test_a_place_depends_on_seed_and_number_only(places):
    numbers = np.random.default_rng(0).permutation(20_000)[:500]
    asked = Mixture(SIZES, WEIGHTS, seed=3).places(numbers)
    np.testing.assert_array_equal(asked.part, places.part[numbers])
    np.testing.assert_array_equal(asked.record, places.record[numbers])
    other = Mixture(SIZES, WEIGHTS, seed=4).places(np.arange(20_000))
    assert (other.record != places.record).mean() > 0.5


def test_each_epoch_has_its_own_order():
    places = Mixture([64], [1], seed=0).places(np.arange(64 * 50)).record.reshape(50, 64)
    assert len({tuple(epoch) for epoch in places.tolist()}) == 50
    # Every record comes first about as often as any other: no place is fixed.
    assert max(Counter(places[:, 0].tolist()).values()) <= 6


def test_permutations_of_a_small_range_are_all_drawn_about_equally():
    drawn = Counter(map(tuple, Mixture([3], [1], seed=1).places(np.arange(6000)).record.reshape(-1, 3).tolist()))
    assert len(drawn) == 6
    # 2000 draws of 6 orders: 333 each, standard deviation 17; a Feistel network of 4 values is not perfectly even.
    assert min(drawn.values()) > 200


def test_without_shuffling_a_part_comes_in_its_own_order():
    places = Mixture([5, 3], [1, 1], seed=0, shuffle=False).places(np.arange(64))
    np.testing.assert_array_equal(places.record[places.part == 0], np.arange(32) % 5)
    np.testing.assert_array_equal(places.record[places.part == 1], np.arange(32) % 3)


def test_large_numbers_do_not_overflow():
    places = Mixture([600_000_000, 3], [1, 2], seed=0).places(np.arange((1 << 42) - 200, 1 << 42))
    assert (places.record >= 0).all()
    assert places.record[places.part == 0].max() < 600_000_000
    # Weights are kept in units of 2**-20, so after 2**42 samples a count is off by up to 2**22.
    np.testing.assert_allclose(places.epoch[places.part == 1], (1 << 42) * 2 / 9, rtol=1e-5)


@pytest.mark.parametrize("weights", [[1, 0], [1, -1], [1, float("nan")], [1]])
def test_impossible_weights(weights):
    with pytest.raises(UserError, match=r"weight"):
        Mixture([5, 5], weights, seed=0)


def test_parts_end_after_their_cycles_and_the_others_go_on():
    sizes, weights, cycles = (100, 30, 50), (2, 1, 1), (3, 2, None)
    mixture = Mixture(sizes, weights, seed=5, cycles=cycles)
    places = mixture.places(np.arange(3000))
    assert mixture.length > 1 << 40
    for part in (0, 1):
        visited = places.record[places.part == part]
        assert Counter(visited.tolist()) == dict.fromkeys(range(sizes[part]), cycles[part])  # none lost, none twice
    # 60 records at a quarter of the samples last 240 numbers, 300 at two thirds of what follows, another 360.
    last = [int(np.flatnonzero(places.part == part)[-1]) for part in (0, 1)]
    assert 200 < last[1] < 320
    assert 420 < last[0] < 640
    share = (places.part[last[1] + BLOCK : last[1] + BLOCK + 128] == 0).mean()
    assert share == pytest.approx(2 / 3, abs=0.02)
    assert (places.part[640:] == 2).all()
    assert 0 < (places.part == -1).sum() < 2 * BLOCK  # the rest of the two blocks in which a part ended


def test_a_mixture_whose_parts_all_end_has_an_end():
    mixture = Mixture([10, 33], [1, 1], seed=0, cycles=[2, 1])
    places = mixture.places(np.arange(200))
    assert mixture.length == 128
    assert Counter(places.part.tolist()) == {0: 20, 1: 33, -1: 147}
    assert Counter(places.record[places.part == 0].tolist()) == dict.fromkeys(range(10), 2)


def test_cycles_do_not_change_what_comes_before_the_end():
    places = [Mixture([50, 70], [1, 2], seed=1, cycles=cycles).places(np.arange(64)) for cycles in (None, [1, 9])]
    np.testing.assert_array_equal(places[0].part, places[1].part)
    np.testing.assert_array_equal(places[0].record, places[1].record)


@pytest.mark.parametrize("seed", range(10))
def test_any_cycles_are_kept(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 6))
    sizes, weights = rng.integers(1, 300, count).tolist(), (0.01 + rng.random(count)).tolist()
    cycles = rng.integers(1, 5, count).tolist()
    mixture = Mixture(sizes, weights, seed, cycles=cycles)
    places = mixture.places(np.arange(mixture.length + 100))
    for part in range(count):
        visited = Counter(places.record[places.part == part].tolist())
        assert visited == dict.fromkeys(range(sizes[part]), cycles[part])


def test_impossible_cycles():
    with pytest.raises(UserError, match="cycles of a mixture must be 1 or more"):
        Mixture([5], [1], seed=0, cycles=[0])

import itertools
import random

import numpy as np
import pytest

from seed_jax.data.batches.packing import Numbered, Sample, pack, packing_stats, take_row


def sample(tokens, mask=None) -> Sample:
    return Sample(np.array(tokens, np.int32), np.array([True] * len(tokens) if mask is None else mask, bool))


def test_a_row_as_literal_arrays():
    batch = pack([sample([1, 7, 8, 2], [1, 0, 1, 1]), sample([1, 9, 2], [1, 1, 0])], 9)
    expected = {
        "tokens": [1, 7, 8, 2, 1, 9, 2, 0, 0],
        "targets": [7, 8, 2, 0, 9, 2, 0, 0, 0],
        # Trained labels 8 and the first 2, then 9, stand one to the left; a first token is nobody's target.
        "loss_mask": [0, 1, 1, 0, 1, 0, 0, 0, 0],
        "segment_ids": [1, 1, 1, 1, 2, 2, 2, 0, 0],
        "positions": [0, 1, 2, 3, 0, 1, 2, 0, 0],
    }
    assert {name: array.tolist() for name, array in batch.items()} == {name: [row] for name, row in expected.items()}
    assert {array.dtype for name, array in batch.items() if name != "loss_mask"} == {np.dtype(np.int32)}
    assert batch["loss_mask"].dtype == np.float32


def test_first_fit_looks_past_what_does_not_fit():
    sizes = [5, 6, 4, 3, 1]
    rows = pack([sample([size] * size) for size in sizes], 10)["tokens"]
    assert [list(dict.fromkeys(row[row > 0].tolist())) for row in rows] == [[5, 4, 1], [6, 3]]


def test_look_ahead_bounds_what_waits():
    sizes = iter([8, 5, 5, 5, 2])
    drawn, pending = [], []

    def draw():
        drawn.append(next(sizes))
        return Numbered(len(drawn), sample([1] * drawn[-1]))

    assert [len(each) for each in take_row(pending, draw, 10, look_ahead=2)] == [8]
    assert drawn == [8, 5, 5]  # the 2 that would fit is beyond the look-ahead
    assert [len(each) for each in take_row(pending, draw, 10, look_ahead=2)] == [5, 5]
    assert [len(each) for each in pending] == []


def test_a_full_row_draws_nothing_more():
    pending = [Numbered(0, sample([1] * 10)), Numbered(1, sample([2] * 3))]
    assert [each.number for each in take_row(pending, lambda: pytest.fail("not needed"), 10, 4)] == [0]
    assert [each.number for each in pending] == [1]


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_split_or_doubled(seed):
    rng = random.Random(seed)
    length, count = rng.randint(2, 60), rng.randint(0, 80)
    samples = [
        sample([1000 * number + place + 1 for place in range(rng.randint(1, length))]) for number in range(count)
    ]
    batch = pack(samples, length, look_ahead=rng.randint(1, 9))
    found = []
    for tokens, targets, segments, positions, mask in zip(
        *(batch[name] for name in ("tokens", "targets", "segment_ids", "positions", "loss_mask")), strict=True
    ):
        assert (np.diff(np.flatnonzero(segments)) == 1).all()  # padding on the right only
        for segment in range(1, segments.max() + 1):
            inside = segments == segment
            found.append(tuple(tokens[inside].tolist()))
            assert positions[inside].tolist() == list(range(inside.sum()))
            assert targets[inside].tolist() == [*tokens[inside][1:].tolist(), 0]
            assert mask[inside].tolist() == [1] * (inside.sum() - 1) + [0]
        assert not tokens[segments == 0].any()
        assert not mask[segments == 0].any()
    assert sorted(found) == sorted(tuple(each.tokens.tolist()) for each in samples)


def test_captions_and_documents_fill_the_rows():
    rng = np.random.default_rng(0)
    # 85 of 100 samples are captioned pictures of 42 to 74 tokens, the others documents cut at 1024.
    sizes = (
        int(rng.integers(42, 75)) if rng.random() < 0.85 else int(min(1024, rng.lognormal(5.8, 0.8) + 60))
        for _ in itertools.count()
    )
    samples = [sample(np.ones(next(sizes))) for _ in range(3000)]
    stats = packing_stats(pack(samples, 2048))
    assert stats.samples == 3000
    assert stats.tokens == sum(len(each.tokens) for each in samples)
    assert stats.useful_share >= 0.97


def test_stats_count_trained_labels():
    stats = packing_stats(pack([sample([1, 7, 8, 2], [1, 0, 1, 1]), sample([1, 9, 2], [1, 1, 0])], 9))
    assert (stats.tokens, stats.trained, stats.samples) == (7, 3.0, 2)
    assert stats.useful_share == pytest.approx(7 / 9)

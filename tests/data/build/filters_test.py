"""The original's filters: what they refuse, and that it is counted as filtered, not as bad."""

import json

import numpy as np
import pytest

from seed_jax.data.build.build import build
from seed_jax.data.build.filters import ORIGINAL_FILTERS, ImageFilters, similarity
from seed_jax.data.build.options import BuildOptions
from seed_jax.data.shards.shards import open_shards
from seed_jax.data.sources import open_source
from seed_jax.errors import UserError
from tests.data.sources.samples import Reds, png


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"all_similarities": [0.1, 0.4, 0.2], "similarity": 0.9}, 0.4),  # the best of several, spec D.5
        ({"similarity": 0.3, "score": 0.1}, 0.3),
        ({"score": 1}, 1.0),
        ({}, None),
        ({"similarity": None, "score": 0.2}, 0.2),
        ({"similarity": "0.3"}, None),
        ({"all_similarities": [], "similarity": True}, None),
    ],
)
def test_similarity_is_found_where_the_original_looks(meta, expected):
    assert similarity(meta) == expected


@pytest.mark.parametrize(
    ("size", "refused"),
    [
        ((180, 180), None),
        ((179, 400), "side shorter than 180 pixels"),
        ((400, 179), "side shorter than 180 pixels"),
        ((200, 363), None),  # 200 / 363 is above 0.55
        ((363, 200), None),
        ((200, 364), "aspect ratio above 1.818"),
        ((364, 200), "aspect ratio above 1.818"),
    ],
)
def test_size_and_shape(size, refused):
    assert ImageFilters(**ORIGINAL_FILTERS).refuse_size(*size) == refused


def test_unset_filters_pass_everything():
    assert ImageFilters().refuse_size(1, 1000) is None
    assert ImageFilters().refuse_similarity(-1.0) is None
    assert ImageFilters(min_similarity=0.5).refuse_similarity(None) is None
    assert ImageFilters().as_dict() == {}


def test_filtered_records_are_counted_and_do_not_stop_the_build(tmp_path):
    sizes = {"a": (200, 200), "b": (100, 200), "c": (200, 500), "d": (200, 200), "e": (200, 200)}
    lines = [{"image": f"{name}.png", "caption": name, "similarity": 0.1 if name == "d" else 0.3} for name in sizes]
    for name, size in sizes.items():
        (tmp_path / f"{name}.png").write_bytes(png(ord(name), size))
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = BuildOptions(
        filters=ImageFilters(**ORIGINAL_FILTERS), progress=False
    )  # one bad record of five would be too many
    manifest = build(open_source("folder", [tmp_path]), tmp_path / "o", encoder=Reds(), options=options)
    assert manifest.dropped == {
        "aspect ratio above 1.818": 1,
        "side shorter than 180 pixels": 1,
        "similarity below 0.25": 1,
    }
    assert manifest.filters == ORIGINAL_FILTERS
    assert (tmp_path / "o/bad.jsonl").read_text() == ""
    assert [record.items[1] for record in open_shards(tmp_path / "o")] == ["a", "e"]
    with pytest.raises(UserError, match=r"filters was {'max_aspect': .*is {}"):
        build(open_source("folder", [tmp_path]), tmp_path / "o", encoder=Reds(), options=BuildOptions(progress=False))


def test_impossible_filters():
    with pytest.raises(UserError, match=r"--max-aspect 0.5 must be at least 1"):
        ImageFilters(max_aspect=0.5)
    with pytest.raises(UserError, match="--min-size 0 must be"):
        ImageFilters(min_size=0)


class Slow(Reds):
    """Gives codes that are fetched later, and notes when."""

    def __init__(self):
        super().__init__()
        self.events = []

    def encode(self, images):
        number = len([event for event in self.events if event.startswith("start")])
        self.events.append(f"start {number}")
        codes, events = super().encode(images), self.events

        class Codes:
            def __array__(self, dtype=None, copy=None):
                events.append(f"fetch {number}")
                return np.asarray(codes)

        return Codes()


def test_a_batch_is_fetched_after_the_next_one_is_dispatched(tmp_path):
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(png(10 * number))
    lines = [{"image": f"{number}.png", "caption": str(number)} for number in range(8)]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    encoder = Slow()
    build(open_source("folder", [tmp_path]), tmp_path / "o", encoder=encoder, options=BuildOptions(progress=False))
    assert encoder.events == ["start 0", "start 1", "fetch 0", "start 2", "fetch 1", "fetch 2"]
    assert [2 * int(record.items[0][0]) for record in open_shards(tmp_path / "o")] == [10 * n for n in range(8)]


def test_repeated_images_are_encoded_once(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(40 * number))
    order = [0, 1, 1, 0, 2, 2, 1, 0]
    lines = [{"image": f"{number}.png", "caption": f"question {place}"} for place, number in enumerate(order)]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))

    class Counting(Reds):
        def encode(self, images):
            self.batches.append(len(images))
            return super().encode(images)

    encoder = Counting()
    build(open_source("folder", [tmp_path]), tmp_path / "o", encoder=encoder, options=BuildOptions(progress=False))
    assert encoder.batches == [3]
    assert [2 * int(record.items[0][0]) for record in open_shards(tmp_path / "o")] == [40 * n for n in order]

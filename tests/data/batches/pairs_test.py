"""Batches of images with captions: the same on any number of hosts and workers, and from any position."""

import dataclasses
import io
import pickle

import numpy as np
import pytest
from PIL import Image

from seed_jax.data.batches.pairs import PairBatches, PairReader
from seed_jax.data.batches.record_stream import MixtureComponent, RecordStream
from seed_jax.data.batches.resume_state import merge_states
from seed_jax.data.shards import manifest
from seed_jax.data.shards.manifest import Manifest
from seed_jax.data.shards.records import Record, encode
from seed_jax.data.shards.shards import shard_name, write_shard
from seed_jax.data.text.bert import train_small
from seed_jax.errors import UserError

CAPTIONS = ("a red square.", "a green square", "a blue square")
VOCABULARY = train_small(CAPTIONS, 60)
READER = PairReader(16, VOCABULARY, text_length=8)
ROWS = 4


def png(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def write(directory, records):
    directory.mkdir()
    shard = write_shard(directory / shard_name(0), [encode(record) for record in records])
    manifest.save(directory, Manifest("test", (shard,), {"images": len(records)}))
    return directory


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    records = [Record(str(i), "test", (png(i), *CAPTIONS), {"image_embedding": [float(i), 1.0]}) for i in range(7)]
    return write(tmp_path_factory.mktemp("pairs") / "shards", records)


def batches(shards, rows=range(ROWS), reader=READER, **options):
    stream = RecordStream([MixtureComponent(shards)], seed=3)
    return PairBatches(stream, reader, batch_size=ROWS, batch_indices=list(rows), **options)


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_rows_match_their_spec(shards):
    reader = dataclasses.replace(READER, embedding_width=2)
    batch = next(batches(shards, reader=reader))
    found = {name: (value.shape[1:], value.dtype.type) for name, value in batch.items()}
    assert found == {name: (shape, dtype) for name, (shape, dtype) in reader.row_spec().items()}
    assert (batch["image_embedding"][:, 1] == 1).all()


def test_an_epoch_has_every_image_with_new_random_captions(shards):
    reader = dataclasses.replace(READER, augmentation=None, embedding_width=2)
    found = take(batches(shards, reader=reader), 14)  # eight epochs of seven
    numbers = np.concatenate([batch["image_embedding"][:, 0] for batch in found])
    for epoch in numbers.reshape(8, 7):
        assert sorted(epoch) == list(range(7))
    texts = {tuple(row) for batch in found for row in batch["text"]}
    assert texts == {tuple(VOCABULARY.pad(text.rstrip("."), 8).ids) for text in CAPTIONS}


def test_hosts_make_the_rows_that_one_host_would(shards):
    whole = take(batches(shards), 3)
    parts = [take(batches(shards, rows), 3) for rows in ((0, 2), (1, 3))]
    for step in range(3):
        for place, rows in enumerate(((0, 2), (1, 3))):
            for name, value in parts[place][step].items():
                np.testing.assert_array_equal(value, whole[step][name][list(rows)])


def test_worker_processes_make_the_same_batches(shards):
    iterator = batches(shards, workers=2, prefetch=2)
    try:
        assert_same(take(iterator, 5), take(batches(shards), 5))
    finally:
        iterator.close()


def test_going_on_from_a_saved_position(shards):
    iterator = batches(shards)
    take(iterator, 2)
    state, expected = iterator.get_state(), take(iterator, 3)
    fresh = batches(shards, prefetch=1)
    fresh.set_state(state)
    assert_same(take(fresh, 3), expected)
    # Two hosts' positions, merged, let one host go on.
    halves = [batches(shards, rows) for rows in ((0, 1), (2, 3))]
    for half in halves:
        take(half, 2)
    fresh = batches(shards)
    fresh.set_state(merge_states([half.get_state() for half in halves]))
    assert_same(take(fresh, 3), expected)


def test_a_position_of_another_augmentation_is_refused(shards):
    state = batches(shards).get_state()
    with pytest.raises(UserError, match="augmentation"):
        batches(shards, reader=dataclasses.replace(READER, augmentation=None)).set_state(state)


def test_the_reader_is_picklable():
    copy = pickle.loads(pickle.dumps(READER))
    record = Record("0", "test", (png(0), "a red square"))
    for name, value in READER(record, np.random.default_rng(1)).items():
        np.testing.assert_array_equal(copy(record, np.random.default_rng(1))[name], value)


@pytest.mark.parametrize(
    ("items", "meta", "words"),
    [
        ((np.zeros(32, np.uint16), "text"), {}, "holds codes, str, expected an image and its caption"),
        ((png(0),), {}, "holds bytes, expected an image and its caption"),
        ((b"no image", "text"), {}, "not an image"),
        ((png(0), "text"), {"image_embedding": [1.0]}, "has 1 numbers, expected 2"),
    ],
)
def test_bad_records_are_named(tmp_path, items, meta, words):
    directory = write(tmp_path / "bad", [Record("the-id", "test", items, meta)])
    with pytest.raises(UserError, match=words) as found:
        next(batches(directory, reader=dataclasses.replace(READER, embedding_width=2)))
    assert "the-id" in str(found.value)

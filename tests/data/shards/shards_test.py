import contextlib
import json
import pickle
import random

import numpy as np
import pytest

from seed_jax.data.build.build import build
from seed_jax.data.build.options import BuildOptions
from seed_jax.data.shards import manifest, records, shards
from seed_jax.data.shards.shards import open_shards, shard_name, write_shard
from seed_jax.data.sources import open_source
from seed_jax.errors import UserError
from tests.data.batches import mixtures


@pytest.fixture
def directory(tmp_path):
    return mixtures.write(tmp_path / "d", map(mixtures.captioned, range(17)))


def edit(directory, **changes):
    path = directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_reads_back_every_record_in_order(directory):
    opened = open_shards(directory, tokenizer="f" * 64, verify=True)
    assert len(opened) == 17
    assert [record.items[1] for record in opened] == [str(number) for number in range(17)]
    np.testing.assert_array_equal(opened[16].items[0], mixtures.codes(16))
    assert opened.locate(16) == (directory / shard_name(2), 2)
    assert pickle.loads(pickle.dumps(opened))[9].id == "folder/9"
    with pytest.raises((IndexError, ValueError)):
        opened[17]


def test_equal_records_give_equal_bytes(tmp_path):
    data = [records.encode(mixtures.captioned(number)) for number in range(50)]
    one, two = write_shard(tmp_path / "a", iter(data)), write_shard(tmp_path / "b", iter(data))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert one.sha256 == two.sha256
    assert one.records == 50
    assert one.bytes == (tmp_path / "a").stat().st_size


def test_an_interrupted_write_leaves_nothing_behind(tmp_path):
    def broken():
        yield b"one"
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        write_shard(tmp_path / "a", broken())
    assert list(tmp_path.iterdir()) == []


def test_a_shard_without_records_is_skipped(tmp_path):
    directory = mixtures.write(tmp_path / "d", map(mixtures.captioned, range(7)))
    empty = write_shard(directory / shard_name(9), [])
    old = manifest.load(directory)
    manifest.save(directory, manifest.Manifest("folder", (empty, *old.shards)))
    assert open_shards(directory)[0].items[1] == "0"


def test_missing_directory_and_unfinished_build(tmp_path):
    with pytest.raises(UserError, match=r"d does not exist"):
        open_shards(tmp_path / "d")
    with pytest.raises(UserError, match="is not a shard directory"):
        open_shards(tmp_path)
    (tmp_path / "build").mkdir()
    with pytest.raises(UserError, match="unfinished build"):
        open_shards(tmp_path)


def test_other_schema_and_other_tokenizer(directory):
    with pytest.raises(UserError, match=r"made by image tokenizer ffffffffffff, expected 000000000000"):
        open_shards(directory, tokenizer="0" * 64)
    edit(directory, schema=99)
    with pytest.raises(UserError, match=r"manifest.json has schema 99, expected 1"):
        open_shards(directory)


def test_shards_of_text_fit_any_tokenizer(tmp_path):
    directory = mixtures.write(tmp_path / "d", map(mixtures.captioned, range(3)), items={"texts": 3}, tokenizer=None)
    assert len(open_shards(directory, tokenizer="0" * 64)) == 3


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"schema": 1}', '{"schema": 1, "records": 0, "shards": [{"name": 1}]}']
)
def test_a_broken_manifest(directory, content):
    (directory / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest.json is not a valid manifest"):
        open_shards(directory)


def test_counts_that_do_not_agree(directory):
    edit(directory, records=18)
    with pytest.raises(UserError, match="its shards have 17 records in total, but `records` is 18"):
        open_shards(directory)


def test_damaged_shards_are_all_named(directory):
    (directory / shard_name(0)).unlink()
    whole = (directory / shard_name(1)).read_bytes()
    (directory / shard_name(1)).write_bytes(whole[:-10])
    with pytest.raises(
        UserError, match=f"shard-000000.array_record is missing; shard-000001.array_record has {len(whole) - 10} bytes"
    ):
        open_shards(directory)


@pytest.mark.parametrize("records", [3, 1_000_000])
def test_records_of_the_manifest_are_those_of_the_shards(tmp_path, records):
    directory = mixtures.write(tmp_path / "d", map(mixtures.captioned, range(5)))
    content = json.loads((directory / "manifest.json").read_text())
    content["records"] += records - content["shards"][0]["records"]
    content["shards"][0]["records"] = records
    (directory / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"shard-000000.array_record has \d+ records, expected {records}"):
        open_shards(directory)


def test_changed_content_is_found_by_hash_and_by_reading(directory):
    path = directory / shard_name(1)
    data = bytearray(path.read_bytes())
    place = data.index(mixtures.codes(9).tobytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"shard-000001.array_record does not match its recorded SHA-256"):
        open_shards(directory, verify=True)
    opened = open_shards(directory)
    assert opened[8].items[1] == "8"
    with pytest.raises(UserError, match=r"Record 2 of .*shard-000001.array_record cannot be read"):
        opened[9]


@pytest.mark.parametrize("kind", ["cut off", "changed", "torn out"])
def test_a_broken_shard_gives_its_records_or_a_sentence_never_others(directory, kind):
    rng, expected = random.Random(kind), [records.encode(record) for record in open_shards(directory)]
    path, content = directory / shard_name(1), json.loads((directory / "manifest.json").read_text())
    whole, refused = path.read_bytes(), 0
    places = [place for place, byte in enumerate(whole) if byte]  # most of a small shard is empty
    for _ in range(40):
        data, place = bytearray(whole), rng.choice(places)
        if kind == "cut off":
            del data[place:]
        elif kind == "torn out":
            del data[place : place + rng.randint(1, 2000)]
        else:
            for _ in range(rng.randint(1, 8)):
                data[rng.choice(places)] = rng.randrange(256)
        path.write_bytes(data)
        content["shards"][1]["bytes"] = len(data)  # or it would be found at once
        (directory / "manifest.json").write_text(json.dumps(content))
        opened = open_shards(directory)
        for number in range(17):
            try:
                assert records.encode(opened[number]) == expected[number]
            except UserError:
                refused += 1
    assert refused > 100


@pytest.mark.parametrize("name", ["manifest.json", "build/plan.json"])
def test_broken_state_files_are_one_sentence(tmp_path, name):
    (tmp_path / "t.jsonl").write_text('{"text": "a river"}\n' * 5)
    source, rng = open_source("text", [tmp_path / "t.jsonl"]), random.Random(0)
    build(source, tmp_path / "o", options=BuildOptions(progress=False))
    whole = (tmp_path / "o" / name).read_bytes()
    for _ in range(100):
        data = bytearray(whole)
        data[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / "o" / name).write_bytes(data[: rng.randint(0, len(data))] if rng.random() < 0.3 else data)
        with contextlib.suppress(UserError):
            build(source, tmp_path / "o", options=BuildOptions(progress=False))
            assert len(list(open_shards(tmp_path / "o"))) == 5


def test_a_record_of_another_schema_is_named(tmp_path):
    directory = tmp_path / "d"
    directory.mkdir()
    good = records.encode(mixtures.captioned(0))
    file = write_shard(directory / shard_name(0), [good, good, b"\x95\x02" + good[2:]])
    manifest.save(directory, manifest.Manifest("folder", (file,)))
    with pytest.raises(
        UserError, match=r"Record 2 of .*shard-000000.array_record is not a valid record .*its schema is 2"
    ):
        shards.open_shards(directory)[2]

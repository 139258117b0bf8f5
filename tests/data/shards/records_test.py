import random

import msgpack
import numpy as np
import pytest

from seed_jax.data.shards import records
from seed_jax.data.shards.records import Record, decode, encode
from seed_jax.errors import UserError
from tests.data.batches import mixtures

MIXED = Record(
    "a.tar/007", "webdataset", ("A 犬.", mixtures.codes(3), b"\xff\xd8jpeg", ""), {"similarity": 0.5, "tags": [1, None]}
)


def raw(**changes) -> bytes:
    fields = {"schema": records.SCHEMA, "id": "x", "source": "folder", "items": ["text"], "meta": {}} | changes
    return msgpack.packb(list(fields.values()))


def test_round_trip_of_every_kind_of_item():
    record = decode(encode(MIXED))
    assert (record.id, record.source, record.meta) == (MIXED.id, MIXED.source, MIXED.meta)
    assert [type(item) for item in record.items] == [str, np.ndarray, bytes, str]
    assert record.items[0] == "A 犬."
    assert record.items[1].dtype == np.uint16
    np.testing.assert_array_equal(record.items[1], mixtures.codes(3))
    assert record.items[2:] == (b"\xff\xd8jpeg", "")


def test_bytes_are_those_of_the_documented_format():
    content = msgpack.unpackb(encode(MIXED))
    assert content[:3] == [1, "a.tar/007", "webdataset"]
    assert content[3][1] == msgpack.ExtType(1, mixtures.codes(3).astype("<u2").tobytes())
    assert encode(decode(encode(MIXED))) == encode(MIXED)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (raw(schema=2), "schema is 2"),
        (raw(schema="1"), "schema number"),
        (raw(items=[]), "no items"),
        (raw(items=[7]), "a int, expected text"),
        (raw(items=[["nested"]]), "a list, expected text"),
        (raw(items=[b""]), "an image is empty"),
        (raw(items=[msgpack.ExtType(9, b"1234")]), "unknown extension type 9"),
        (raw(items=[msgpack.ExtType(1, b"1" * 62)]), "31 codes, expected 32"),
        (raw(meta={"codes": msgpack.ExtType(1, b"1" * 64)}), "meta contains a ndarray"),
        (raw(meta=[]), "id, a source, items and meta"),
        (raw(more=1), "id, a source, items and meta"),
        (raw(id=b"x"), "id, a source, items and meta"),
        (raw() + b"\x00", "extra data"),
        (raw()[:-1], "incomplete"),
        (b"", "incomplete"),
        (msgpack.packb("text"), "schema number"),
        (msgpack.packb([1, "x", "folder", ["\udc80"], {}], unicode_errors="surrogatepass"), "utf-8"),
    ],
)
def test_invalid_records_are_one_clear_error(data, reason):
    with pytest.raises(UserError, match=r"Record 5 of s.array_record is not a valid record of schema 1") as caught:
        decode(data, "s.array_record", 5)
    assert reason in str(caught.value)


def test_fuzzed_bytes_give_a_record_or_a_user_error():
    rng = random.Random(0)
    whole, refused = encode(MIXED), 0
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            assert isinstance(decode(bytes(data[: rng.randint(0, len(data))] if rng.random() < 0.3 else data)), Record)
        except UserError:
            refused += 1
    assert refused > 1000


@pytest.mark.parametrize(
    "changes",
    [
        {"items": ()},
        {"items": (b"",)},
        {"items": (np.arange(32),)},  # int64
        {"items": (mixtures.codes(0)[:31],)},
        {"items": ("half a pair \ud800",)},
        {"meta": {"when": (1, 2)}},
        {"meta": {"nested": {1: "key"}}},
        {"meta": {"large": 2**70}},
    ],
)
def test_what_cannot_be_read_back_is_not_written(changes):
    with pytest.raises(UserError, match="'x' of 'folder' cannot be stored"):
        encode(Record(**({"id": "x", "source": "folder", "items": ("text",), "meta": {}} | changes)))

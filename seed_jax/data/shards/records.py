"""What a shard holds: small versioned records of texts, image codes and encoded pictures.

A record is msgpack, the array `[schema, id, source, items, meta]`; an item is a msgpack string (text), binary (an
encoded picture) or extension 1 (32 codes, little-endian uint16). Nothing in it can run code, unlike a pickle, and
codes are those of the image tokenizer, so that a record fits any vocabulary.
"""

import dataclasses
from typing import Any

import msgpack
import numpy as np

from seed_jax.data.text.vocabulary import CODES_PER_IMAGE
from seed_jax.errors import UserError

SCHEMA = 1

Item = str | bytes | np.ndarray
"""A text, the bytes of a picture file (JPEG, PNG, ...), or the codes of a picture: uint16 of shape [32]."""

_CODES = 1  # msgpack extension type
_CODES_BYTES = 2 * CODES_PER_IMAGE
_PLAIN = (str, int, float, type(None))


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """One sample: texts and pictures in reading order.

    A captioned picture is the picture followed by its captions (usually one).

    Attributes:
        id: where the record comes from, e.g. `00012.tar/000120007`; stable from build to build.
        source: kind of source, e.g. `webdataset`.
        meta: what else is known: numbers, texts, booleans, None, lists and dicts of them.
    """

    id: str
    source: str
    items: tuple[Item, ...]
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)


def encode(record: Record) -> bytes:
    """Return the bytes of `record`: equal records have equal bytes."""
    try:
        if not record.items:
            raise ValueError("it has no items")
        items = [_packed(item) for item in record.items]
        _check_plain(record.meta)
        return msgpack.packb([SCHEMA, record.id, record.source, items, record.meta])
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"Record {record.id!r} of {record.source!r} cannot be stored: {error}.") from error


def decode(data: bytes, shard: str = "memory", index: int = 0) -> Record:
    """Read the bytes of a record; UserError naming `shard` and `index` for anything but a whole, known record."""
    try:
        return _decoded(data)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"Record {index} of {shard} is not a record of schema {SCHEMA} ({error}): build the shards again."
        ) from error


def _packed(item: Item) -> str | bytes | msgpack.ExtType:
    if isinstance(item, np.ndarray):
        if item.dtype != np.uint16 or item.shape != (CODES_PER_IMAGE,):
            raise ValueError(f"codes are {item.dtype} {list(item.shape)}, expected uint16 [{CODES_PER_IMAGE}]")
        return msgpack.ExtType(_CODES, item.astype("<u2").tobytes())
    _check_text_or_picture(item)
    return item


def _check_text_or_picture(item: Any) -> None:
    if isinstance(item, bytes):
        if not item:
            raise ValueError("a picture has no bytes")
    elif not isinstance(item, str):
        raise ValueError(f"an item is a {type(item).__name__}, expected text, codes or the bytes of a picture")


def _decoded(data: bytes) -> Record:
    fields = msgpack.unpackb(data, ext_hook=_unpacked)
    if not isinstance(fields, list) or not fields or type(fields[0]) is not int:
        raise ValueError("it does not begin with a schema number")
    if fields[0] != SCHEMA:
        raise ValueError(f"its schema is {fields[0]}")
    if len(fields) != 5 or [type(field) for field in fields[1:]] != [str, str, list, dict]:
        raise ValueError("it does not have an id, a source, items and meta")
    _, name, source, items, meta = fields
    if not items:
        raise ValueError("it has no items")
    for item in items:
        if not isinstance(item, np.ndarray):
            _check_text_or_picture(item)
    _check_plain(meta)
    return Record(name, source, tuple(items), meta)


def _unpacked(kind: int, data: bytes) -> np.ndarray:
    if kind != _CODES:
        raise ValueError(f"an item is of unknown kind {kind}")
    if len(data) != _CODES_BYTES:
        raise ValueError(f"an image has {len(data) / 2:g} codes, expected {CODES_PER_IMAGE}")
    return np.frombuffer(data, "<u2").astype(np.uint16, copy=False)


def _check_plain(value: Any) -> None:
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("meta has a key that is not text")
        value = [*value.values()]
    if isinstance(value, list):
        for each in value:
            _check_plain(each)
    elif not isinstance(value, _PLAIN):
        raise ValueError(f"meta holds a {type(value).__name__}")

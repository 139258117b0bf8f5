"""The record format of shards: versioned msgpack records of texts, image codes and encoded images.

A record is the msgpack array `[schema, id, source, items, meta]`; an item is a msgpack string (text), binary (an
encoded image file) or extension 1 (32 codes, little-endian uint16). Unlike a pickle it cannot execute code. Codes are
those of the image tokenizer, so that a record can be used with any vocabulary.
"""

import dataclasses
from typing import Any

import msgpack
import numpy as np

from seed_jax.data.text.vocabulary import CODES_PER_IMAGE
from seed_jax.errors import UserError

SCHEMA = 1

Item = str | bytes | np.ndarray
"""A text, the bytes of an image file (JPEG, PNG, ...), or the codes of an image (uint16 [32])."""

_CODES_EXTENSION = 1  # msgpack extension type
_CODES_BYTES = 2 * CODES_PER_IMAGE
_PLAIN_TYPES = (str, int, float, type(None))


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """One sample: texts and images in reading order.

        Record("00012.tar/000120007", "webdataset", (codes, "A dog."), {"width": 640})

    Attributes:
        id: origin of the record; stable from build to build.
        source: kind of source.
        items: the content; a captioned image is the image followed by its captions.
        meta: metadata: numbers, texts, booleans, None, lists and dicts of them.
    """

    id: str
    source: str
    items: tuple[Item, ...]
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)


def encode(record: Record) -> bytes:
    """Serialize a record; equal records give equal bytes. UserError if it contains anything that cannot be stored."""
    try:
        if not record.items:
            raise ValueError("no items")
        items = [_packed(item) for item in record.items]
        _check_plain(record.meta)
        data = msgpack.packb([SCHEMA, record.id, record.source, items, record.meta])
        assert data is not None
        return data
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"Record {record.id!r} of {record.source!r} cannot be stored: {error}.") from error


def decode(data: bytes, shard: str = "memory", index: int = 0) -> Record:
    """Deserialize a record.

    Args:
        data: the bytes of the record.
        shard, index: origin of the record, for error messages.

    Raises:
        UserError: the bytes are not a complete record of the current schema.
    """
    try:
        return _decode(data)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"Record {index} of {shard} is not a valid record of schema {SCHEMA} ({error}): build the shards again."
        ) from error


def _packed(item: Item) -> str | bytes | msgpack.ExtType:
    if isinstance(item, np.ndarray):
        if item.dtype != np.uint16 or item.shape != (CODES_PER_IMAGE,):
            raise ValueError(
                f"codes have dtype {item.dtype} and shape {list(item.shape)}, expected uint16 [{CODES_PER_IMAGE}]"
            )
        return msgpack.ExtType(_CODES_EXTENSION, item.astype("<u2").tobytes())
    _check_text_or_image(item)
    return item


def _check_text_or_image(item: Any) -> None:
    if isinstance(item, bytes):
        if not item:
            raise ValueError("an image is empty")
    elif not isinstance(item, str):
        raise ValueError(f"an item is a {type(item).__name__}, expected text, codes or the bytes of an image")


def _decode(data: bytes) -> Record:
    fields = msgpack.unpackb(data, ext_hook=_unpack_codes)
    if not isinstance(fields, list) or not fields or type(fields[0]) is not int:
        raise ValueError("it does not begin with a schema number")
    if fields[0] != SCHEMA:
        raise ValueError(f"its schema is {fields[0]}")
    if len(fields) != 5 or [type(field) for field in fields[1:]] != [str, str, list, dict]:
        raise ValueError("it does not have an id, a source, items and meta")
    _, name, source, items, meta = fields
    if not items:
        raise ValueError("no items")
    for item in items:
        if not isinstance(item, np.ndarray):
            _check_text_or_image(item)
    _check_plain(meta)
    return Record(name, source, tuple(items), meta)


def _unpack_codes(kind: int, data: bytes) -> np.ndarray:
    if kind != _CODES_EXTENSION:
        raise ValueError(f"an item has the unknown extension type {kind}")
    if len(data) != _CODES_BYTES:
        raise ValueError(f"an image has {len(data) / 2:g} codes, expected {CODES_PER_IMAGE}")
    return np.frombuffer(data, "<u2").astype(np.uint16, copy=False)


def _check_plain(value: Any) -> None:
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("a key of meta is not text")
        value = [*value.values()]
    if isinstance(value, list):
        for element in value:
            _check_plain(element)
    elif not isinstance(value, _PLAIN_TYPES):
        raise ValueError(f"meta contains a {type(value).__name__}")

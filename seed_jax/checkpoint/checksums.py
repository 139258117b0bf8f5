"""Checksums of stored weights, so that bit rot is an error and never another model.

- Every chunk of an array consists of parts, Zstandard frames that end with the XXH64 of their content. TensorStore
  verifies a part whenever it reads it: lazily, for one shard, or on one of several hosts.
- The JSON items of a training checkpoint hold the SHA-256 of their content.
- `checksums.json` of a model directory holds the SHA-256 of every other file; `seed-jax doctor DIR` compares them.

Directories that were written without them are read as before.
"""

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from orbax.checkpoint._src.serialization import tensorstore_utils

from seed_jax.files import read_json, write_json

FILE = "checksums.json"
_KEY = "sha256"
# Elements of the parts of a chunk: verified in parallel, and while they are in the processor's cache.
_PART = 2**18
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC = {"name": "crc32c"}
# Zstandard levels. XXH64 takes half the time of CRC-32C; at the second level frames hold weights as they are.
_COMPRESSED, _UNCOMPRESSED = 1, -10


def add_to_chunks() -> None:
    """Let Orbax write checksums into every chunk of its Zarr 3 arrays.

    Orbax has no option for codecs, hence the replaced function; `tests/checkpoint/checksums_test.py` fails where a new
    version of Orbax no longer uses it.
    """
    original = getattr(tensorstore_utils, "_build_zarr3_metadata", None)
    if original is None:
        logging.warning("This version of orbax-checkpoint writes no checksums of chunks: install the one of setup.py.")
        return

    def with_checksums(*args: Any, **kwargs: Any) -> dict[str, Any]:
        metadata = original(*args, **kwargs)
        level = _COMPRESSED if "zstd" in json.dumps(metadata["codecs"]) else _UNCOMPRESSED
        frames = {"name": "zstd", "configuration": {"level": level, "checksum": True}}
        configuration = {
            "chunk_shape": part_shape(metadata["chunk_grid"]["configuration"]["chunk_shape"]),
            "codecs": [_BYTES, frames],
            "index_codecs": [_BYTES, _CRC],
            "index_location": "end",
        }
        return {**metadata, "codecs": [{"name": "sharding_indexed", "configuration": configuration}]}

    tensorstore_utils._build_zarr3_metadata = with_checksums


def part_shape(chunk_shape: Sequence[int]) -> tuple[int, ...]:
    """Divide a chunk along its first axes into equal parts of about 2**18 elements."""
    part = list(chunk_shape)
    for axis, size in enumerate(chunk_shape):
        rest = math.prod(part[axis + 1 :])
        if size * rest <= _PART:
            break
        divisors = [count for low in range(1, math.isqrt(size) + 1) if size % low == 0 for count in (low, size // low)]
        part[axis] = min(divisors, key=lambda count: abs(math.log(max(1, count * rest) / _PART)))
        if part[axis] > 1:
            break
    return tuple(part)


def seal(value: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object with the SHA-256 of its content."""
    return {**value, _KEY: _digest(value)}


def unseal(value: dict[str, Any]) -> dict[str, Any]:
    """Return a sealed object without its checksum; one without checksum is returned as it is.

    Raises:
        ValueError: the content is not what was sealed.
    """
    content = {key: item for key, item in value.items() if key != _KEY}
    if _KEY in value and value[_KEY] != _digest(content):
        raise ValueError("the SHA-256 of its content does not match")
    return content


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_file(directory: Path) -> None:
    """Write `checksums.json` with the SHA-256 of every file of a directory."""
    write_json(directory / FILE, {_KEY: {name: _file_digest(directory / name) for name in _files(directory)}})


def compare_file(directory: Path) -> Iterator[str]:
    """Read every file of a directory that has a `checksums.json`, and yield one sentence for each that differs."""
    expected = read_json(directory / FILE, "restore it or import the model again").get(_KEY)
    if not isinstance(expected, dict):
        yield f"{directory / FILE} holds no checksums: it is damaged."
        return
    for name, digest in sorted(expected.items()):
        path = directory / name
        if not path.is_file():
            yield f"{path} is missing."
            continue
        try:
            differs = _file_digest(path) != digest
        except OSError as error:
            yield f"{path} cannot be read ({error.strerror})."
            continue
        if differs:
            yield f"{path} is not what was written: its SHA-256 differs."


def _files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

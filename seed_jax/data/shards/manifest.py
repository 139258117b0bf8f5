"""`manifest.json`: what a directory of shards holds, and what it was made with."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

from seed_jax.errors import UserError
from seed_jax.files import write_bytes

MANIFEST = "manifest.json"
SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class ShardFile:
    """One shard: its name, how many records it has, its size in bytes and the SHA-256 of its content."""

    name: str
    records: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What is in a directory of shards.

    Attributes:
        source: kind of source the records come from.
        items: number of texts, codes (pictures as codes) and images (pictures as files).
        dropped: reason -> number of input records that are not in the shards.
        tokenizer: fingerprint of the image tokenizer that made the codes; None where pictures were stored as they are.
        preprocessing: how pictures were resized before they were tokenised; None likewise.
        options: settings of the source, e.g. how many frames of a video were taken.
        filters: the filters that were set; what they left out is in `dropped`.
        pictures_left_out: reason -> number of pictures that documents are without.
    """

    source: str
    shards: tuple[ShardFile, ...]
    items: dict[str, int] = dataclasses.field(default_factory=dict)
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    tokenizer: str | None = None
    preprocessing: dict[str, Any] | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    filters: dict[str, Any] = dataclasses.field(default_factory=dict)
    pictures_left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def records(self) -> int:
        return sum(shard.records for shard in self.shards)


def to_json(value: Any) -> bytes:
    """Return `value` as the bytes of a readable JSON file, equal for equal values."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def save(directory: Path, manifest: Manifest) -> None:
    content = dataclasses.asdict(manifest) | {"records": manifest.records}
    write_bytes(directory / MANIFEST, to_json(content))


def load(directory: Path) -> Manifest:
    """Read the manifest of a directory; UserError where it is missing, unreadable or of another schema."""
    path = directory / MANIFEST
    if not path.is_file():
        why = (
            "holds an unfinished build: run the same `seed-jax data build` again"
            if directory.is_dir()
            else "is missing"
        )
        if directory.is_dir() and not (directory / "build").is_dir():
            why = "is no directory of shards: make one with `seed-jax data build`"
        raise UserError(f"{directory} has no {MANIFEST}; it {why}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema = content.pop("schema")
        if schema != SCHEMA:
            raise UserError(f"{path} is of schema {schema}, expected {SCHEMA}: build the shards again.")
        records = content.pop("records")
        shards = tuple(ShardFile(**shard) for shard in content.pop("shards"))
        manifest = Manifest(shards=shards, **content)
        if manifest.records != records:
            raise ValueError(f"its shards have {manifest.records} records, it says {records}")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not a manifest ({error}): build the shards again.") from error
    return manifest


def total(counts: list[dict[str, int]]) -> dict[str, int]:
    """Add up counts by name."""
    return dict(sorted(sum(map(Counter, counts), Counter()).items()))

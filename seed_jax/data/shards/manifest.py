"""`manifest.json`: the content of a shard directory, and the options it was built with."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

from seed_jax.errors import UserError
from seed_jax.files import parse_json, read_text, write_bytes

MANIFEST = "manifest.json"
SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class ShardFile:
    """A shard file: name, number of records, size in bytes and SHA-256 of its content."""

    name: str
    records: int
    bytes: int
    sha256: str

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "ShardFile":
        """Build from parsed JSON; TypeError or ValueError if it is not what `dataclasses.asdict` returned."""
        shard = cls(**content)
        if not isinstance(shard.name, str) or Path(shard.name).name != shard.name or not isinstance(shard.sha256, str):
            raise ValueError(f"a shard is named {shard.name!r}")
        if type(shard.records) is not int or type(shard.bytes) is not int or min(shard.records, shard.bytes) < 0:
            raise ValueError(f"{shard.name} has {shard.records!r} records and {shard.bytes!r} bytes")
        return shard


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of a shard directory.

    Attributes:
        source: kind of source of the records.
        shards: the shard files, in order.
        items: number of `texts`, of `codes` (tokenized images) and of `images` (stored image files).
        dropped: reason -> number of input samples that are not in the shards.
        tokenizer: fingerprint of the image tokenizer that made the codes; None if image files were stored.
        preprocessing: image preprocessing before tokenization; None if image files were stored.
        precision: of the image tokenizer's computation; None if image files were stored, or in shards of earlier
            versions, whose default was float32.
        options: options of the source, e.g. the number of frames per video.
        filters: the enabled filters; the samples they removed are counted in `dropped`.
        images_left_out: reason -> number of images left out of documents.
        schema: version of this format.
    """

    source: str
    shards: tuple[ShardFile, ...]
    items: dict[str, int] = dataclasses.field(default_factory=dict)
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    tokenizer: str | None = None
    preprocessing: dict[str, Any] | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    filters: dict[str, Any] = dataclasses.field(default_factory=dict)
    images_left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    precision: str | None = None
    schema: int = SCHEMA

    @property
    def records(self) -> int:
        return sum(shard.records for shard in self.shards)


def to_json(value: Any) -> bytes:
    """Return the bytes of an indented JSON file; equal values give equal bytes."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def save(directory: Path, manifest: Manifest) -> None:
    """Write `manifest.json` atomically."""
    content = dataclasses.asdict(manifest) | {"records": manifest.records}
    write_bytes(directory / MANIFEST, to_json(content))


def load(directory: Path) -> Manifest:
    """Read the manifest of a directory; UserError if it is missing, invalid or of another schema."""
    path = directory / MANIFEST
    if not path.is_file():
        if not directory.exists():
            raise UserError(f"{directory} does not exist, expected a shard directory made by `seed-jax data build`.")
        if (directory / "build").is_dir():
            raise UserError(f"{directory} holds an unfinished build: run its `seed-jax data build` command again.")
        raise UserError(
            f"{directory} is not a shard directory: it has no {MANIFEST}; make one with `seed-jax data build`."
        )
    try:
        content = parse_json(read_text(path))
        schema = content.pop("schema")
        if schema != SCHEMA:
            raise UserError(f"{path} has schema {schema}, expected {SCHEMA}: build the shards again.")
        if "pictures_left_out" in content:  # the key's name in earlier versions
            content["images_left_out"] = content.pop("pictures_left_out")
        records = content.pop("records")
        shards = tuple(map(ShardFile.from_dict, content.pop("shards")))
        manifest = Manifest(shards=shards, **content)
        if manifest.records != records:
            raise ValueError(f"its shards have {manifest.records} records in total, but `records` is {records}")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not a valid manifest ({error}): build the shards again.") from error
    return manifest


def total(counts: list[dict[str, int]]) -> dict[str, int]:
    """Sum counts by name; sorted by name."""
    return dict(sorted(sum(map(Counter, counts), Counter()).items()))

"""Describe shards and records as lines of text for the terminal."""

from pathlib import Path
from typing import Any

from seed_jax.data.shards.manifest import Manifest
from seed_jax.data.shards.records import Item, Record
from seed_jax.images import load
from seed_jax.sizes import format_size


def summary(directory: Path, manifest: Manifest) -> list[str]:
    """Return lines that describe a shard directory."""
    lines = [f"{directory}: {manifest.records:,} records of source {manifest.source}"]
    return lines + [f"{name}: {value}" for name, value in manifest_facts(manifest).items()]


def manifest_facts(manifest: Manifest) -> dict[str, str]:
    """Return the content of a manifest, except source and number of records, as name -> text."""
    size = sum(shard.bytes for shard in manifest.shards)
    facts = {
        "shards": f"{len(manifest.shards):,}, {format_size(size)}",
        "items": _format_counts(manifest.items) or "none",
    }
    if manifest.tokenizer:
        described = [manifest.tokenizer, manifest.precision, _format_dict(manifest.preprocessing or {})]
        facts["tokenizer"] = ", ".join(filter(None, described))
    if manifest.options:
        facts["options"] = _format_dict(manifest.options)
    if manifest.filters:
        facts["filters"] = _format_dict(manifest.filters)
    if manifest.dropped:
        facts["dropped"] = f"{sum(manifest.dropped.values()):,} ({_format_counts(manifest.dropped)})"
    if manifest.images_left_out:
        left_out = manifest.images_left_out
        facts["left out of documents"] = f"{sum(left_out.values()):,} images ({_format_counts(left_out)})"
    return facts


def record_lines(record: Record) -> list[str]:
    """Return lines that describe one record."""
    lines = [f"  id: {record.id}"]
    lines += [f"  {_format_item(item)}" for item in record.items]
    return [*lines, f"  meta: {_format_dict(record.meta)}"] if record.meta else lines


def truncate(text: str, length: int) -> str:
    """Shorten a text to at most `length` characters."""
    return text if len(text) <= length else text[: length - 3] + "..."


def _format_item(item: Item) -> str:
    if isinstance(item, str):
        return f"text: {truncate(item, 200)!r}"
    if isinstance(item, bytes):
        image = load(item)
        return f"image: {image.width} x {image.height}, {format_size(len(item))}"
    return f"codes: {' '.join(map(str, item.tolist()))}"


def _format_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _format_dict(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={truncate(str(value), 60)}" for key, value in values.items())

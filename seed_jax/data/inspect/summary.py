"""What shards hold, as lines of text."""

from pathlib import Path
from typing import Any

from seed_jax.data.shards.manifest import Manifest
from seed_jax.data.shards.records import Item, Record
from seed_jax.images import load


def summary(directory: Path, manifest: Manifest) -> list[str]:
    """Return lines that say what a directory of shards holds."""
    lines = [f"{directory}: {manifest.records:,} records of source {manifest.source}"]
    return lines + [f"{name}: {value}" for name, value in facts(manifest).items()]


def facts(manifest: Manifest) -> dict[str, str]:
    """Return what a manifest says besides the number of records, by name."""
    size = sum(shard.bytes for shard in manifest.shards)
    found = {
        "shards": f"{len(manifest.shards):,}, {_bytes(size)}",
        "items": _counts(manifest.items) or "nothing",
    }
    if manifest.tokenizer:
        found["tokenizer"] = ", ".join(filter(None, [manifest.tokenizer, _plain(manifest.preprocessing or {})]))
    if manifest.options:
        found["options"] = _plain(manifest.options)
    if manifest.filters:
        found["filters"] = _plain(manifest.filters)
    if manifest.dropped:
        found["left out"] = f"{sum(manifest.dropped.values()):,} ({_counts(manifest.dropped)})"
    if manifest.pictures_left_out:
        left_out = manifest.pictures_left_out
        found["documents are without"] = f"{sum(left_out.values()):,} pictures ({_counts(left_out)})"
    return found


def described(record: Record) -> list[str]:
    """Return lines that show one record."""
    lines = [f"  id: {record.id}"]
    lines += [f"  {_item(item)}" for item in record.items]
    return [*lines, f"  meta: {_plain(record.meta)}"] if record.meta else lines


def _item(item: Item) -> str:
    if isinstance(item, str):
        return f"text: {_clipped(item, 200)!r}"
    if isinstance(item, bytes):
        image = load(item)
        return f"image: {image.width} x {image.height}, {_bytes(len(item))}"
    return f"codes: {' '.join(map(str, item.tolist()))}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _plain(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={_clipped(str(value), 60)}" for key, value in values.items())


def _clipped(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _bytes(count: int) -> str:
    power = min(max(count.bit_length() - 1, 0) // 10, 4)
    return f"{count / 1024**power:,.{1 if power else 0}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"

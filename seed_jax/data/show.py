"""What shards hold, as lines of text."""

from pathlib import Path
from typing import Any

from seed_jax.data.manifest import Manifest
from seed_jax.data.records import Item, Record
from seed_jax.images import load


def summary(directory: Path, manifest: Manifest) -> list[str]:
    """Return lines that say what a directory of shards holds."""
    size = sum(shard.bytes for shard in manifest.shards)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in manifest.items.items()) or "nothing"
    lines = [
        f"{directory}: {manifest.records:,} records of source {manifest.source}",
        f"shards: {len(manifest.shards):,}, {_bytes(size)}",
        f"items: {counts}",
    ]
    if manifest.tokenizer:
        lines.append(f"tokenizer: {manifest.tokenizer}, {_plain(manifest.preprocessing or {})}")
    if manifest.dropped:
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in manifest.dropped.items())
        lines.append(f"left out: {sum(manifest.dropped.values()):,} ({dropped})")
    return lines


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


def _plain(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={_clipped(str(value), 60)}" for key, value in values.items())


def _clipped(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _bytes(count: int) -> str:
    power = min(max(count.bit_length() - 1, 0) // 10, 4)
    return f"{count / 1024**power:,.{1 if power else 0}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"

"""Small shard directories and a small template for the tests of the data pipeline."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from seed_jax.data.batches.packing import RenderedSample
from seed_jax.data.shards import manifest, records, shards
from seed_jax.data.shards.manifest import Manifest
from seed_jax.data.shards.records import Record


def codes(number: int) -> np.ndarray:
    return ((np.arange(32) * 7 + number) % 8192).astype(np.uint16)


def captioned(number: int, source: str = "folder") -> Record:
    """Return an image whose caption is its number, so that a sample can be recognized."""
    return Record(f"{source}/{number}", source, (codes(number), str(number)), {"width": 640})


def write(directory: Path, content: Iterable[Record], shard_size: int = 7, **fields) -> Path:
    """Write a shard directory with its manifest."""
    directory.mkdir(parents=True)
    content = list(content)
    blocks = [content[start : start + shard_size] for start in range(0, len(content), shard_size)]
    files = [
        shards.write_shard(directory / shards.shard_name(index), map(records.encode, block))
        for index, block in enumerate(blocks)
    ]
    fields = {"items": {"codes": len(content), "texts": len(content)}, "tokenizer": "f" * 64, **fields}
    manifest.save(directory, Manifest("folder", tuple(files), **fields))
    return directory


def render_pieces(record: Record, rng: np.random.Generator) -> list[RenderedSample]:
    """Return one to four samples, as a template does that continues long documents."""
    (sample,) = render(record, rng)
    lengths = [len(sample), *rng.integers(3, 41, rng.integers(4)).tolist()]
    tokens = [np.full(length, 1000 * number + sample.tokens[0], np.int32) for number, length in enumerate(lengths, 1)]
    return [dataclasses.replace(sample, tokens=each, loss_mask=each > 0) for each in tokens]


def render(record: Record, rng: np.random.Generator) -> list[RenderedSample]:
    """Repeat the record's number 3 to 40 times, as often as `rng` says; leave out every 13th record."""
    number = int(record.items[1])
    tokens = np.full(rng.integers(3, 41), number + 100, np.int32)
    tokens[-1] = rng.integers(1, 100)  # tells two visits of the same record apart
    mask = rng.random(len(tokens)) < 0.5
    return [RenderedSample(tokens, mask, kept=number % 13 != 0, reason="unlucky")]

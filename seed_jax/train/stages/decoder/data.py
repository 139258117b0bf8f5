"""The pictures a decoder learns to draw, and some of its drawings when it has."""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from PIL import Image

from seed_jax import images
from seed_jax.data.batches.pairs import PairBatches, PictureReader
from seed_jax.data.batches.record_stream import Part, RecordStream
from seed_jax.data.build import build
from seed_jax.data.build.settings import Settings
from seed_jax.data.sources import open_source
from seed_jax.errors import UserError
from seed_jax.train.stages.decoder.embedding_source import EmbeddingSource

SHEET = "drawings.png"
_DEMO_PICTURES = 512


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """What the stage needs of its data."""

    reader: PictureReader
    make_batches: Callable[[list[int]], PairBatches]

    @property
    def row_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in self.reader.row_spec().items()}


def open_pictures(config: ml_collections.ConfigDict, workdir: Path, image_size: int, target_size: int) -> Pictures:
    """Open the shards that `config.data` names; the :tiny variant draws its own below the workdir."""
    data = config.data
    if data.demo:
        parts = (Part(_demo(workdir / "demo_world")),)
    elif data.parts:
        parts = tuple(Part(part["path"], weight=part["weight"]) for part in data.parts)
    else:
        raise UserError("data.parts is empty: name at least one folder of shards, or set data.demo=True.")
    reader = PictureReader(image_size, target_size, data.interpolation, data.keep_ratio, data.flip)
    return Pictures(reader, functools.partial(_batches, RecordStream(parts, config.seed), reader, data))


def _batches(stream: RecordStream, reader: PictureReader, data: ml_collections.ConfigDict, rows: list[int]):
    return PairBatches(
        stream, reader, batch_size=data.batch_size, rows=rows, workers=data.workers, prefetch=data.prefetch
    )


def _demo(directory: Path) -> Path:
    shards = directory / "shards"
    if not shards.is_dir():
        directory.mkdir(parents=True, exist_ok=True)
        described = directory / "pictures.world.json"
        described.write_text(json.dumps({"task": "captions", "count": _DEMO_PICTURES}), encoding="utf-8")
    build.build(open_source("world", [directory / "pictures.world.json"]), shards, settings=Settings(progress=False))
    return shards


def show(data: Pictures, source: EmbeddingSource, samples: int, variables: dict[str, Any], workdir: Path) -> None:
    """Draw what the first pictures' embeddings give, with the averaged weights, beside the pictures."""
    if not samples or jax.process_count() > 1:
        return
    # Late: a run without samples needs none of them.
    from seed_jax.inference.contact_sheet import contact_sheet
    from seed_jax.inference.drawing.drawer import Drawer

    batches = data.make_batches(list(range(samples)))
    rows = next(batches)
    batches.close()
    embed = jax.jit(lambda params, pixels: source.embed(params, images.normalize(pixels)))
    embeddings = np.asarray(embed(variables["source"], rows["image"]))
    drawn = Drawer.load(workdir).draw(embeddings, list(range(samples)))
    pairs = [[Image.fromarray(each) for each in pair] for pair in zip(rows["target"], drawn, strict=True)]
    contact_sheet(pairs).save(workdir / SHEET)
    logging.info("%s: pictures, and what is drawn from their embeddings.", workdir / SHEET)

"""Images with captions as the training batches and the held-out set of a tokenizer stage."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from seed_jax.checkpoint import model_dir
from seed_jax.data.batches.augment import Augmentation
from seed_jax.data.batches.pairs import PairBatches, PairReader, RowReader
from seed_jax.data.batches.record_stream import MixtureComponent, RecordStream
from seed_jax.data.text import bert
from seed_jax.data.text.bert import BertVocabulary
from seed_jax.data.text.clip import ClipVocabulary
from seed_jax.errors import UserError
from seed_jax.evaluation.eval_pairs import EvalPairs
from seed_jax.files import AnyPath
from seed_jax.train.config.common import ImageDataConfig
from seed_jax.train.config.tokenizer import InitFromConfig, PairDataConfig, PairEvaluateConfig
from seed_jax.train.runtime.workdir import demo_directory

DEMO = "demo_pairs"


@dataclasses.dataclass(frozen=True, eq=False)
class PairSources:
    """Where images and captions come from.

    Attributes:
        mixture: shard directories to train on.
        vocabulary_file: BERT vocabulary of the captions.
        held_out: shard directory to evaluate on, or None.
    """

    mixture: tuple[MixtureComponent, ...]
    vocabulary_file: Path
    held_out: Path | None

    @functools.cached_property
    def vocabulary(self) -> BertVocabulary:
        return BertVocabulary.load(self.vocabulary_file)


def find_pair_sources(
    data: PairDataConfig, evaluate: PairEvaluateConfig, init_from: InitFromConfig, workdir: AnyPath
) -> PairSources:
    """Find shards and vocabulary; the demo makes its own below `workdir`."""
    check_init_from(init_from)
    inherited = inherited_vocabulary(init_from.model)
    if data.demo:
        from seed_jax import demo  # imports the inference side, which only the demo needs

        pairs = demo.prepare_pairs_demo(demo_directory(workdir, DEMO))
        return PairSources((MixtureComponent(pairs.shards),), inherited or pairs.vocabulary, pairs.held_out)
    vocabulary = Path(data.vocabulary) if data.vocabulary else inherited
    if vocabulary is None:
        raise UserError(
            f"data.vocabulary is empty and {init_from.model} brings none: name the vocab.txt of bert-base-uncased or "
            "its directory."
        )
    return PairSources(mixture_components(data), vocabulary, Path(evaluate.data) if evaluate.data else None)


def check_init_from(init_from: InitFromConfig) -> None:
    """Raise UserError if weights to start from do not exist."""
    missing = [f"init_from.{kind} {path}" for kind, path in init_from.files().items() if not Path(path).exists()]
    if init_from.model and not Path(init_from.model).exists():
        missing.insert(0, f"init_from.model {init_from.model}")
    if missing:
        raise UserError(
            f"Weights to start from do not exist: {', '.join(missing)}. Get official files with `seed-jax fetch`, "
            "import a tokenizer with `seed-jax import tokenizer`, name the workdir of an earlier stage, or set the "
            "option to ''."
        )


def mixture_components(data: ImageDataConfig) -> tuple[MixtureComponent, ...]:
    """Return the shard directories that `data.mixture` names."""
    return tuple(MixtureComponent(entry["path"], weight=entry.get("weight", 1.0)) for entry in data.mixture)


def inherited_vocabulary(directory: str) -> Path | None:
    """Return the vocabulary of the model directory or workdir to start from, if it has one."""
    if not directory:
        return None
    folder, _ = model_dir.read_config(directory)
    return folder / bert.FILE if (folder / bert.FILE).is_file() else None


def open_held_out(
    sources: PairSources, reader: PairReader, evaluate: PairEvaluateConfig, batch_size: int
) -> EvalPairs | None:
    """Open the held-out set, or return None where there is none or it is never evaluated."""
    if sources.held_out is None or not evaluate.every_steps:
        return None
    plain = dataclasses.replace(reader, text_length=evaluate.text_length)
    return EvalPairs.open(sources.held_out, plain, batch_size, evaluate.max_samples)


def make_pair_reader(
    data: PairDataConfig,
    image_size: int,
    vocabulary: BertVocabulary,
    *,
    clip_vocabulary: ClipVocabulary | None = None,
    embedding_width: int | None = None,
) -> PairReader:
    """Return the reader of training rows; see `PairReader` for the last two arguments."""
    augmentation = Augmentation(data.crop_scale, data.crop_ratio, data.flip) if data.augment else None
    return PairReader(image_size, vocabulary, data.text_length, augmentation, clip_vocabulary, embedding_width)


def image_batches(
    data: ImageDataConfig,
    mixture: Sequence[MixtureComponent],
    reader: RowReader,
    seed: int,
    local_indices: list[int],
) -> PairBatches:
    """Return this process's part of the batches, decoded according to `data`."""
    return PairBatches(
        RecordStream(mixture, seed),
        reader,
        batch_size=data.batch_size,
        batch_indices=local_indices,
        workers=data.workers,
        prefetch=data.prefetch,
    )


def pair_batch_spec(
    image_size: int, text_length: int, *, clip_length: int | None = None, embedding_width: int | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of the rows that a `PairReader` makes."""
    spec = {
        "image": jax.ShapeDtypeStruct((image_size, image_size, 3), np.uint8),
        "text": jax.ShapeDtypeStruct((text_length,), np.int32),
        "text_mask": jax.ShapeDtypeStruct((text_length,), np.bool_),
    }
    if clip_length is not None:
        spec["clip_text"] = jax.ShapeDtypeStruct((clip_length,), np.int32)
    if embedding_width is not None:
        spec["image_embedding"] = jax.ShapeDtypeStruct((embedding_width,), np.float32)
    return spec


def as_shapes(row_spec: Mapping[str, tuple[tuple[int, ...], Any]]) -> dict[str, jax.ShapeDtypeStruct]:
    """Turn a reader's `row_spec` into abstract arrays."""
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in row_spec.items()}

"""Pictures with captions as a tokenizer stage's batches and held set, from `config.data` and `config.evaluate`."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections

from seed_jax.data.batches.augment import Augmentation
from seed_jax.data.batches.pairs import PairBatches, PairReader
from seed_jax.data.batches.record_stream import Part, RecordStream
from seed_jax.data.text.bert import BertVocabulary
from seed_jax.data.text.clip import ClipVocabulary
from seed_jax.errors import UserError
from seed_jax.evaluation.eval_pairs import HeldPairs

DEMO = "demo_pairs"


@dataclasses.dataclass(frozen=True, eq=False)
class Sources:
    """Where pictures and words come from.

    Attributes:
        held: directory of shards to evaluate on, or None.
    """

    parts: tuple[Part, ...]
    vocabulary_file: Path
    held: Path | None

    @functools.cached_property
    def vocabulary(self) -> BertVocabulary:
        return BertVocabulary.load(self.vocabulary_file)


def find_sources(config: ml_collections.ConfigDict, workdir: Path, inherited_vocabulary: Path | None = None) -> Sources:
    """Find the data, making the embedded set below `workdir` where the config asks for it.

    Args:
        inherited_vocabulary: what to use where `data.vocabulary` is empty.
    """
    data = config.data
    if data.demo:
        from seed_jax import demo  # only the :tiny variants need it

        pairs = demo.prepare_pairs(workdir / DEMO)
        return Sources((Part(pairs.shards),), inherited_vocabulary or pairs.vocabulary, pairs.held)
    if not data.parts:
        raise UserError("data.parts is empty: name at least one folder of shards, or set data.demo=True.")
    if not data.vocabulary and inherited_vocabulary is None:
        raise UserError("data.vocabulary is empty: give the vocab.txt of bert-base-uncased or its folder.")
    vocabulary = Path(data.vocabulary) if data.vocabulary else inherited_vocabulary
    parts = tuple(Part(part["path"], weight=part["weight"]) for part in data.parts)
    return Sources(parts, vocabulary, Path(data.held) if data.held else None)


@dataclasses.dataclass(frozen=True, eq=False)
class PairData:
    """What a stage needs of its data."""

    reader: PairReader
    make_batches: Callable[[list[int]], PairBatches]
    held: HeldPairs | None

    @property
    def row_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in self.reader.row_spec().items()}


def make_pair_data(
    config: ml_collections.ConfigDict,
    sources: Sources,
    image_size: int,
    *,
    clip_vocabulary: ClipVocabulary | None = None,
    embedding_width: int | None = None,
) -> PairData:
    """Open the shards; see `PairReader` for the last two."""
    data = config.data
    augmentation = Augmentation(tuple(data.crop_scale), tuple(data.crop_ratio), data.flip) if data.augment else None
    reader = PairReader(
        image_size, sources.vocabulary, data.text_length, augmentation, clip_vocabulary, embedding_width
    )
    held = None
    if sources.held is not None and config.evaluate.every_steps:
        plain = dataclasses.replace(reader, text_length=config.evaluate.text_length)
        held = HeldPairs.open(sources.held, plain, data.batch_size, config.evaluate.most)
    make_batches = functools.partial(
        _batches, RecordStream(sources.parts, config.seed), reader, data.batch_size, data.workers, data.prefetch
    )
    return PairData(reader, make_batches, held)


def _batches(
    stream: RecordStream, reader: PairReader, batch_size: int, workers: int, prefetch: int, rows: list[int]
) -> PairBatches:
    return PairBatches(stream, reader, batch_size=batch_size, rows=rows, workers=workers, prefetch=prefetch)

"""Batches of pictures with captions for training the image tokenizer, decoded and augmented in Grain's workers.

Row r of step s is sample s * rows + r of the record stream; its random choices come from (seed, sample number). A row
is thus the same whatever the number of hosts and workers, and the position to resume from is the number of steps.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np

from seed_jax import images
from seed_jax.data.batches.augment import Augmentation, augment
from seed_jax.data.batches.record_stream import Drawn, RecordStream
from seed_jax.data.batches.resume_state import FORMAT, check_same, own_lanes
from seed_jax.data.shards.records import Record
from seed_jax.data.text import bert
from seed_jax.data.text.bert import BertVocabulary
from seed_jax.data.text.clip import ClipVocabulary
from seed_jax.errors import UserError

Row = dict[str, np.ndarray]
"""`image` uint8 [S, S, 3], `text` int32 [T], `text_mask` bool [T]; with a CLIP vocabulary `clip_text` int32 [77]; with
`embedding_width` E, `image_embedding` float32 [E]."""
_NUM_STEPS = 1 << 40


@runtime_checkable
class RowReader(Protocol):
    """Turns a record into a row of a batch; can be pickled."""

    def __call__(self, record: Record, rng: np.random.Generator) -> Row: ...

    def describe(self) -> dict[str, Any]:
        """Return what rows depend on, as JSON data, apart from a vocabulary."""
        ...


@dataclasses.dataclass(frozen=True)
class PairReader:
    """Turn a record, a picture with its captions, into a row; can be pickled.

    Attributes:
        augmentation: None resizes the whole picture (bicubic), as for evaluation.
        embedding_width: width of the CLIP image embedding that the records carry as `meta["image_embedding"]`.
    """

    image_size: int
    vocabulary: BertVocabulary
    text_length: int = 32
    augmentation: Augmentation | None = Augmentation()
    clip_vocabulary: ClipVocabulary | None = None
    embedding_width: int | None = None

    def __call__(self, record: Record, rng: np.random.Generator) -> Row:
        picture, texts = picture_and_captions(record)
        caption = bert.clean(texts[rng.integers(len(texts))])
        framed = self.vocabulary.frame(caption, self.text_length)
        row = {"image": self.pixels(picture, rng), "text": framed.ids, "text_mask": framed.mask}
        if self.clip_vocabulary is not None:
            row["clip_text"] = np.array(self.clip_vocabulary.encode(caption), np.int32)
        if self.embedding_width is not None:
            row["image_embedding"] = _embedding(record, self.embedding_width)
        return row

    def pixels(self, picture: bytes, rng: np.random.Generator) -> np.ndarray:
        image = images.load(picture)
        if self.augmentation is None:
            return images.resize(image, self.image_size, "bicubic")
        return augment(image, self.image_size, self.augmentation, rng)

    def describe(self) -> dict[str, Any]:
        augmentation = None if self.augmentation is None else repr(self.augmentation)
        return {"image_size": self.image_size, "text_length": self.text_length, "augmentation": augmentation}

    def row_spec(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """Return name -> (shape, dtype) of a row."""
        text = ((self.text_length,), np.int32)
        spec = {"image": ((self.image_size, self.image_size, 3), np.uint8), "text": text}
        spec["text_mask"] = (text[0], np.bool_)
        if self.clip_vocabulary is not None:
            spec["clip_text"] = ((self.clip_vocabulary.max_length,), np.int32)
        if self.embedding_width is not None:
            spec["image_embedding"] = ((self.embedding_width,), np.float32)
        return spec


def picture_and_captions(record: Record) -> tuple[bytes, list[str]]:
    """Return the first picture of a record and all its texts."""
    pictures = [item for item in record.items if isinstance(item, bytes)]
    texts = [item for item in record.items if isinstance(item, str)]
    if not pictures or not texts:
        kinds = ", ".join("codes" if isinstance(item, np.ndarray) else type(item).__name__ for item in record.items)
        raise UserError(
            f"it holds {kinds}, expected a picture and its caption: build the shards with pictures as they are "
            "(without --model)."
        )
    return pictures[0], texts


def _embedding(record: Record, width: int) -> np.ndarray:
    values = np.array(record.meta.get("image_embedding") or [], np.float32)
    if values.shape != (width,):
        raise UserError(f"its meta['image_embedding'] has {values.size} numbers, expected {width} of CLIP's.")
    return values


class _Steps:
    """This process's rows of every step, as a random-access source for Grain."""

    def __init__(self, stream: RecordStream, reader: RowReader, batch_size: int, rows: Sequence[int], first: int):
        self._stream, self._reader, self._batch_size = stream, reader, batch_size
        self._rows, self._first = np.array(rows, np.int64), first

    def __len__(self) -> int:
        return _NUM_STEPS

    def __getitem__(self, index: int) -> Row:
        numbers = (self._first + index) * self._batch_size + self._rows
        rows = [self._read(drawn) for drawn in self._stream.draw(numbers)]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _read(self, drawn: Drawn) -> Row:
        try:
            return self._reader(drawn.record, drawn.rng())
        except UserError as error:
            raise UserError(f"{self._stream.where(drawn)}: {error}") from error


class PairBatches:
    """An endless iterator over this process's rows of the global batches; its state is plain JSON data.

    Args:
        batch_size: rows of the global batch.
        rows: those of them that this process makes.
        workers: processes that decode and augment; 0 uses threads of this process.
        threads: batches that are worked on at once, in each process.
        prefetch: batches made ahead, in each process.
    """

    def __init__(
        self,
        stream: RecordStream,
        reader: RowReader,
        *,
        batch_size: int,
        rows: Sequence[int],
        workers: int = 0,
        threads: int = 4,
        prefetch: int = 4,
    ):
        self._stream, self._reader, self._batch_size, self._rows = stream, reader, batch_size, list(rows)
        self._workers, self._options = workers, grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
        self._step, self._iterator = 0, None

    def __iter__(self) -> "PairBatches":
        return self

    def __next__(self) -> Row:
        if self._iterator is None:
            self._iterator = iter(self._dataset())
        batch = next(self._iterator)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "data": self._describe(),
            "step": self._step,
            "lanes": {str(r): {} for r in self._rows},
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a saved position; it may have been saved by other numbers of hosts and workers."""
        check_same(state, self._describe())
        own_lanes(state, self._rows)
        self.close()
        self._step = state["step"]

    def close(self) -> None:
        """Stop the workers."""
        if self._iterator is not None and hasattr(self._iterator, "close"):
            self._iterator.close()
        self._iterator = None

    def _dataset(self) -> grain.IterDataset:
        source = _Steps(self._stream, self._reader, self._batch_size, self._rows, self._step)
        dataset = grain.MapDataset.source(source).to_iter_dataset(self._options)
        if self._workers:
            return dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers))
        return dataset

    def _describe(self) -> dict[str, Any]:
        """Return what rows depend on, apart from the vocabulary."""
        return {**self._stream.describe(), "rows": self._batch_size, **self._reader.describe()}


@dataclasses.dataclass(frozen=True)
class PictureReader:
    """Turn a record's first picture into a row: `image` uint8 [S, S, 3] and `target` uint8 [D, D, 3].

    Attributes:
        image_size, interpolation: as the tokenizer takes pictures.
        target_size: side of what is drawn.
        keep_ratio: crop the centre, of both alike, instead of squashing.
        flip: probability of mirroring both left and right.
    """

    image_size: int
    target_size: int
    interpolation: str = "bilinear"
    keep_ratio: bool = False
    flip: float = 0.0

    def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        picture = next((item for item in record.items if isinstance(item, bytes)), None)
        if picture is None:
            raise UserError("it holds no picture: build the shards with pictures as they are (without --model).")
        loaded = images.load(picture)
        row = {
            "image": images.resize(loaded, self.image_size, self.interpolation, self.keep_ratio),
            "target": images.resize(loaded, self.target_size, "bicubic", self.keep_ratio),
        }
        if rng.random() < self.flip:
            row = {name: np.ascontiguousarray(pixels[:, ::-1]) for name, pixels in row.items()}
        return row

    def describe(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def row_spec(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """Return name -> (shape, dtype) of a row."""
        return {
            "image": ((self.image_size, self.image_size, 3), np.uint8),
            "target": ((self.target_size, self.target_size, 3), np.uint8),
        }

"""Batches of captioned images for tokenizer training, decoded and augmented in Grain's workers.

Row r of step s is sample s * batch_size + r of the record stream; its random choices come from (seed, sample number).
A row is thus independent of the number of hosts and workers, and the position to resume from is the number of steps.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from absl import flags

from seed_jax import images
from seed_jax.data.batches.augment import Augmentation, augment
from seed_jax.data.batches.record_stream import RecordStream, StreamSample
from seed_jax.data.batches.resume_state import FORMAT, check_same, own_rows
from seed_jax.data.shards.records import Record
from seed_jax.data.text import bert
from seed_jax.data.text.bert import BertVocabulary
from seed_jax.data.text.clip import ClipVocabulary
from seed_jax.errors import UserError

Row = dict[str, np.ndarray]
"""`image` uint8 [S, S, 3], `text` int32 [T], `text_mask` bool [T]; with a CLIP vocabulary `clip_text` int32 [77]; with
`embedding_width` E, `image_embedding` float32 [E]."""

RowSpec = dict[str, tuple[tuple[int, ...], type]]
"""Name -> (shape, dtype) of the arrays of a row."""

_NUM_STEPS = 1 << 40


@runtime_checkable
class RowReader(Protocol):
    """Turns a record into a row of a batch; picklable."""

    def __call__(self, record: Record, rng: np.random.Generator) -> Row: ...

    def describe(self) -> dict[str, Any]:
        """Return what rows depend on, except vocabularies, as JSON data."""
        ...


@dataclasses.dataclass(frozen=True)
class PairReader:
    """Turns a captioned image into a row; picklable.

    Attributes:
        image_size: side of the image in pixels.
        vocabulary: vocabulary of the caption.
        text_length: tokens of the caption.
        augmentation: random crop and flip; None resizes the whole image (bicubic), as for evaluation.
        clip_vocabulary: adds the caption as CLIP tokens.
        embedding_width: width of the CLIP image embedding in `meta["image_embedding"]` of the records.
    """

    image_size: int
    vocabulary: BertVocabulary
    text_length: int = 32
    augmentation: Augmentation | None = Augmentation()
    clip_vocabulary: ClipVocabulary | None = None
    embedding_width: int | None = None

    def __call__(self, record: Record, rng: np.random.Generator) -> Row:
        image, texts = image_and_captions(record)
        caption = bert.clean(texts[rng.integers(len(texts))])
        padded = self.vocabulary.pad(caption, self.text_length)
        row = {"image": self.pixels(image, rng), "text": padded.ids, "text_mask": padded.mask}
        if self.clip_vocabulary is not None:
            row["clip_text"] = np.array(self.clip_vocabulary.encode(caption), np.int32)
        if self.embedding_width is not None:
            row["image_embedding"] = _embedding(record, self.embedding_width)
        return row

    def pixels(self, image: bytes, rng: np.random.Generator) -> np.ndarray:
        """Decode and resize an image: uint8 [image_size, image_size, 3]."""
        decoded = images.load(image)
        if self.augmentation is None:
            return images.resize(decoded, self.image_size, "bicubic")
        return augment(decoded, self.image_size, self.augmentation, rng)

    def describe(self) -> dict[str, Any]:
        augmentation = None if self.augmentation is None else repr(self.augmentation)
        return {"image_size": self.image_size, "text_length": self.text_length, "augmentation": augmentation}

    def row_spec(self) -> RowSpec:
        """Return the shapes and dtypes of a row."""
        spec: RowSpec = {
            "image": ((self.image_size, self.image_size, 3), np.uint8),
            "text": ((self.text_length,), np.int32),
            "text_mask": ((self.text_length,), np.bool_),
        }
        if self.clip_vocabulary is not None:
            spec["clip_text"] = ((self.clip_vocabulary.max_length,), np.int32)
        if self.embedding_width is not None:
            spec["image_embedding"] = ((self.embedding_width,), np.float32)
        return spec


def image_and_captions(record: Record) -> tuple[bytes, list[str]]:
    """Return the first image of a record and all its texts; UserError if it lacks either."""
    image_files = [item for item in record.items if isinstance(item, bytes)]
    texts = [item for item in record.items if isinstance(item, str)]
    if not image_files or not texts:
        kinds = ", ".join("codes" if isinstance(item, np.ndarray) else type(item).__name__ for item in record.items)
        raise UserError(
            f"the record holds {kinds}, expected an image and its caption: build the shards without --model, which "
            "stores the images."
        )
    return image_files[0], texts


def _embedding(record: Record, width: int) -> np.ndarray:
    values = np.array(record.meta.get("image_embedding") or [], np.float32)
    if values.shape != (width,):
        raise UserError(f"meta['image_embedding'] of the record has {values.size} numbers, expected {width} (CLIP).")
    return values


class _StepSource:
    """This process's rows of every step, as a random-access source for Grain."""

    def __init__(
        self, stream: RecordStream, reader: RowReader, batch_size: int, batch_indices: Sequence[int], first_step: int
    ):
        self._stream = stream
        self._reader = reader
        self._batch_size = batch_size
        self._batch_indices = np.array(batch_indices, np.int64)
        self._first_step = first_step

    def __len__(self) -> int:
        return _NUM_STEPS

    def __getitem__(self, index: int) -> Row:
        numbers = (self._first_step + index) * self._batch_size + self._batch_indices
        rows = [self._read(sample) for sample in self._stream.read(numbers)]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _read(self, sample: StreamSample) -> Row:
        try:
            return self._reader(sample.record, sample.rng())
        except UserError as error:
            raise UserError(f"{self._stream.describe_location(sample)}: {error}") from error


class PairBatches:
    """Unbounded iterator over this process's rows of the global batches; its state is plain JSON data.

    Args:
        stream: the records.
        reader: turns a record into a row.
        batch_size: rows of the global batch.
        batch_indices: the rows of the global batch that this process produces.
        workers: processes that decode and augment; 0 uses threads of this process.
        threads: batches computed concurrently in each process.
        prefetch: batches prefetched in each process.
    """

    def __init__(
        self,
        stream: RecordStream,
        reader: RowReader,
        *,
        batch_size: int,
        batch_indices: Sequence[int],
        workers: int = 0,
        threads: int = 4,
        prefetch: int = 4,
    ):
        self._stream = stream
        self._reader = reader
        self._batch_size = batch_size
        self._batch_indices = list(batch_indices)
        self._workers = workers
        self._read_options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
        self._step = 0
        self._iterator: Any = None

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        if self._iterator is None:
            self._iterator = iter(self._dataset())
        batch = next(self._iterator)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Return the position as plain JSON data."""
        rows = {str(index): {} for index in self._batch_indices}
        return {"format": FORMAT, "data": self._describe(), "step": self._step, "rows": rows}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a saved position; it may have been saved with other numbers of hosts and workers."""
        check_same(state, self._describe())
        own_rows(state, self._batch_indices)
        self.close()
        self._step = state["step"]

    def close(self) -> None:
        """Stop the workers."""
        if self._iterator is not None and hasattr(self._iterator, "close"):
            self._iterator.close()
        self._iterator = None

    def _dataset(self) -> grain.IterDataset:
        source = _StepSource(self._stream, self._reader, self._batch_size, self._batch_indices, self._step)
        dataset = grain.MapDataset.source(source).to_iter_dataset(self._read_options)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # Grain's workers read absl's flags, which this package does not use
                flags.FLAGS.mark_as_parsed()
            return dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers))
        return dataset

    def _describe(self) -> dict[str, Any]:
        """Return what rows depend on, except vocabularies."""
        return {**self._stream.describe(), "batch_size": self._batch_size, **self._reader.describe()}


@dataclasses.dataclass(frozen=True)
class ImageReader:
    """Turns the first image of a record into a row: `image` uint8 [S, S, 3] and `target` uint8 [D, D, 3].

    Attributes:
        image_size, interpolation: preprocessing of the image tokenizer.
        target_size: side of the decoder's output in pixels.
        keep_ratio: center-crop both instead of changing the aspect ratio.
        flip: probability of flipping both horizontally.
    """

    image_size: int
    target_size: int
    interpolation: str = "bilinear"
    keep_ratio: bool = False
    flip: float = 0.0

    def __call__(self, record: Record, rng: np.random.Generator) -> Row:
        image = next((item for item in record.items if isinstance(item, bytes)), None)
        if image is None:
            raise UserError("the record holds no image: build the shards without --model, which stores the images.")
        decoded = images.load(image)
        row = {
            "image": images.resize(decoded, self.image_size, self.interpolation, self.keep_ratio),
            "target": images.resize(decoded, self.target_size, "bicubic", self.keep_ratio),
        }
        if rng.random() < self.flip:
            row = {name: np.ascontiguousarray(pixels[:, ::-1]) for name, pixels in row.items()}
        return row

    def describe(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def row_spec(self) -> RowSpec:
        """Return the shapes and dtypes of a row."""
        return {
            "image": ((self.image_size, self.image_size, 3), np.uint8),
            "target": ((self.target_size, self.target_size, 3), np.uint8),
        }

"""Tokenize images in full batches and assemble records from the codes."""

import dataclasses
import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from seed_jax.data.shards.records import Record
from seed_jax.data.text.vocabulary import CODES_PER_IMAGE
from seed_jax.errors import UserError


@runtime_checkable
class ImageEncoder(Protocol):
    """Tokenizes images in batches.

    Attributes:
        fingerprint: identifies weights, config and preprocessing: changes whenever codes could change, up to rounding.
        precision: of the computation, which decides near ties.
        preprocessing: description of the image preprocessing, stored in the manifest.
        batch_size: images per batch. No batch spans two shards, so batches do not depend on how a build was divided.
    """

    fingerprint: str
    precision: str
    preprocessing: dict[str, Any]
    batch_size: int

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Resize one image to [S, S, 3]; called from several threads."""
        ...

    def encode(self, images: np.ndarray) -> Any:
        """Return the codes, int [N, 32], of up to `batch_size` prepared images [N, S, S, 3].

        The result is an array or convertible by `np.asarray`: an asynchronously computed device array lets the next
        batch be gathered meanwhile.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedSample:
    """An input sample with all its images decoded.

    Attributes:
        id: identifies the sample in its source.
        items: texts, existing codes (uint16 [32]), and images: pixels [S, S, 3] if they are to be tokenized, otherwise
            the bytes of the image file.
        meta: metadata to be stored.
        left_out: for documents, one reason per image that was left out.
    """

    id: str
    items: tuple[str | bytes | np.ndarray, ...]
    meta: dict[str, Any]
    left_out: tuple[str, ...] = ()


def to_records(samples: Iterable[PreparedSample], encoder: ImageEncoder | None, source: str) -> Iterator[Record]:
    """Yield the records of a shard in order, tokenizing images in full batches (the last of a shard may be smaller).

    An image that occurs repeatedly, for example with several questions, is encoded once.
    """
    waiting: deque[tuple[PreparedSample, list[Any]]] = deque()
    batcher = _EncodingBatcher(encoder)
    for sample in samples:
        waiting.append((sample, [batcher.submit(item) for item in sample.items]))
        yield from _completed(waiting, batcher, source)
    batcher.finish()
    yield from _completed(waiting, batcher, source)


@dataclasses.dataclass(frozen=True)
class _PendingCodes:
    """Placeholder for the codes of an image that was submitted."""

    digest: bytes


class _EncodingBatcher:
    """Batches the images of a shard; the results of a batch are fetched after the next batch has been dispatched."""

    def __init__(self, encoder: ImageEncoder | None):
        self._encoder = encoder
        self._codes: dict[bytes, np.ndarray | None] = {}
        self._gathered: list[tuple[bytes, np.ndarray]] = []
        self._dispatched: Any = None
        self._dispatched_digests: list[bytes] = []

    def submit(self, item: Any) -> Any:
        """Queue an image for encoding and return its placeholder; return any other item unchanged."""
        if self._encoder is None or not _is_pixels(item):
            return item
        digest = hashlib.blake2b(np.ascontiguousarray(item).data, digest_size=16).digest()
        if digest not in self._codes:
            self._codes[digest] = None
            self._gathered.append((digest, item))
            if len(self._gathered) == self._encoder.batch_size:
                self._dispatch(self._encoder)
        return _PendingCodes(digest)

    def resolve(self, item: Any) -> Any:
        """Return the final item of a record, or None while its codes are not available."""
        return self._codes[item.digest] if isinstance(item, _PendingCodes) else item

    def finish(self) -> None:
        if self._gathered and self._encoder is not None:
            self._dispatch(self._encoder)
        self._fetch()

    def _dispatch(self, encoder: ImageEncoder) -> None:
        dispatched = encoder.encode(np.stack([pixels for _, pixels in self._gathered]))
        self._fetch()
        self._dispatched = dispatched
        self._dispatched_digests = [digest for digest, _ in self._gathered]
        self._gathered = []

    def _fetch(self) -> None:
        if self._dispatched is not None:
            codes = _checked_codes(np.asarray(self._dispatched), len(self._dispatched_digests))
            self._codes |= dict(zip(self._dispatched_digests, codes, strict=True))
            self._dispatched = None


def _is_pixels(item: Any) -> bool:
    return isinstance(item, np.ndarray) and item.ndim == 3


def _checked_codes(codes: np.ndarray, count: int) -> np.ndarray:
    if codes.shape != (count, CODES_PER_IMAGE) or codes.dtype.kind not in "iu":
        raise UserError(
            f"The image tokenizer returned codes of dtype {codes.dtype} and shape {codes.shape}, expected integers of "
            f"shape {(count, CODES_PER_IMAGE)}: records hold {CODES_PER_IMAGE} codes per image."
        )
    if codes.min() < 0 or codes.max() > np.iinfo(np.uint16).max:
        raise UserError(f"The image tokenizer returned codes from {codes.min()} to {codes.max()}, expected 0 to 65535.")
    return codes.astype(np.uint16)


def _completed(
    waiting: deque[tuple[PreparedSample, list[Any]]], batcher: _EncodingBatcher, source: str
) -> Iterator[Record]:
    """Yield the records at the front of the queue whose codes are all available."""
    while waiting:
        sample, submitted = waiting[0]
        items = tuple(map(batcher.resolve, submitted))
        if any(item is None for item in items):
            return
        waiting.popleft()
        yield Record(sample.id, source, items, sample.meta)

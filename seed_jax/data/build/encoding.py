"""Pictures to codes in full batches, and records from what comes back."""

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
class Encoder(Protocol):
    """Turns pictures into codes.

    Attributes:
        fingerprint: changes whenever codes could: with weights, sizes or preprocessing.
        preprocessing: what is done to pictures, for the manifest.
        batch_size: pictures encoded at once. No batch reaches across shards, so its content never depends on chance.
    """

    fingerprint: str
    preprocessing: dict[str, Any]
    batch_size: int

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Resize one picture to [S, S, 3]; called in several threads."""
        ...

    def encode(self, pictures: np.ndarray) -> Any:
        """Return the codes, int [N, 32], of up to `batch_size` prepared pictures, stacked.

        An array, or what `np.asarray` makes one of: with a device's array that is still being computed, the next batch
        is gathered meanwhile.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A work unit with all its pictures decoded.

    Attributes:
        items: texts, codes made earlier (uint16 [32]), and pictures: pixels [S, S, 3] if they are to be encoded, else
            their bytes.
        left_out: of a document, why pictures are missing.
    """

    id: str
    items: tuple[str | bytes | np.ndarray, ...]
    meta: dict[str, Any]
    left_out: tuple[str, ...] = ()


def to_records(units: Iterable[Prepared], encoder: Encoder | None, source: str) -> Iterator[Record]:
    """Yield the records of a shard in order, encoding pictures in full batches (the last of a shard may be smaller).

    A picture that comes again, as under several questions, is encoded once.
    """
    waiting: deque[tuple[Prepared, list[Any]]] = deque()
    codes = _Codes(encoder)
    for unit in units:
        waiting.append((unit, [codes.ask(item) for item in unit.items]))
        yield from _complete(waiting, codes, source)
    codes.finish()
    yield from _complete(waiting, codes, source)


@dataclasses.dataclass(frozen=True)
class _Asked:
    """Stands for a picture whose codes have been asked for."""

    digest: bytes


class _Codes:
    """The codes of a shard's pictures; a batch is fetched from the device when the next one has been given to it."""

    def __init__(self, encoder: Encoder | None):
        self._encoder = encoder
        self._known: dict[bytes, np.ndarray | None] = {}
        self._gathered: list[tuple[bytes, np.ndarray]] = []
        self._started: Any = None
        self._names: list[bytes] = []

    def ask(self, item: Any) -> Any:
        """Return what stands for `item` until its codes are there, if it is a picture to be encoded."""
        if not _is_pixels(item):
            return item
        digest = hashlib.blake2b(np.ascontiguousarray(item), digest_size=16).digest()
        if digest not in self._known:
            self._known[digest] = None
            self._gathered.append((digest, item))
            if len(self._gathered) == self._encoder.batch_size:
                self._start()
        return _Asked(digest)

    def of(self, item: Any) -> Any:
        """Return the item of a record, or None while its codes are not there."""
        return self._known[item.digest] if isinstance(item, _Asked) else item

    def finish(self) -> None:
        if self._gathered:
            self._start()
        self._fetch()

    def _start(self) -> None:
        started = self._encoder.encode(np.stack([pixels for _, pixels in self._gathered]))
        self._fetch()
        self._started, self._names = started, [digest for digest, _ in self._gathered]
        self._gathered = []

    def _fetch(self) -> None:
        if self._started is not None:
            codes = _checked(np.asarray(self._started), len(self._names))
            self._known |= dict(zip(self._names, codes, strict=True))
            self._started = None


def _is_pixels(item: Any) -> bool:
    return isinstance(item, np.ndarray) and item.ndim == 3


def _checked(codes: np.ndarray, count: int) -> np.ndarray:
    if codes.shape != (count, CODES_PER_IMAGE) or codes.dtype.kind not in "iu":
        raise UserError(
            f"The tokenizer gave codes of type {codes.dtype} and shape {codes.shape}, expected whole numbers of shape "
            f"{(count, CODES_PER_IMAGE)}: records hold {CODES_PER_IMAGE} codes a picture."
        )
    if codes.min() < 0 or codes.max() > np.iinfo(np.uint16).max:
        raise UserError(f"The tokenizer gave codes from {codes.min()} to {codes.max()}, expected 0 to 65535.")
    return codes.astype(np.uint16)


def _complete(waiting: deque[tuple[Prepared, list[Any]]], codes: _Codes, source: str) -> Iterator[Record]:
    """Yield the units at the front that have all their codes."""
    while waiting:
        unit, asked = waiting[0]
        items = tuple(map(codes.of, asked))
        if any(item is None for item in items):
            return
        waiting.popleft()
        yield Record(unit.id, source, items, unit.meta)

"""From work units to records: check texts, decode pictures, turn them into codes in full batches."""

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from seed_jax import images
from seed_jax.data.records import Record, encode
from seed_jax.data.sources.units import Bad, Raw, text_problem
from seed_jax.data.vocab import CODES_PER_IMAGE
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
        """Resize one picture; called in several threads."""
        ...

    def encode(self, pictures: np.ndarray) -> np.ndarray:
        """Return the codes, int [N, 32], of up to `batch_size` prepared pictures, stacked."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A work unit with all its pictures decoded: an array for each if they are to be encoded, else their bytes."""

    id: str
    items: tuple[str | bytes | np.ndarray, ...]
    meta: dict[str, Any]

    @property
    def pictures(self) -> list[np.ndarray]:
        return [item for item in self.items if isinstance(item, np.ndarray)]


def prepare(unit: Raw | Bad, encoder: Encoder | None) -> Prepared | Bad:
    """Check and decode everything in a work unit; what cannot be used comes back as Bad, never as an exception."""
    if isinstance(unit, Bad):
        return unit
    items = []
    for item in unit.items:
        if isinstance(item, str):
            if problem := text_problem(item):
                return Bad(unit.id, problem, repr(item[:80]))
            items.append(item)
            continue
        try:
            items.append(_picture(item, encoder))
        except UserError as error:
            return Bad(unit.id, "unreadable picture", str(error))
        except FileNotFoundError:
            return Bad(unit.id, "missing picture", str(item))
        except OSError as error:
            return Bad(unit.id, "unreadable picture", str(error))
    try:
        encode(Record(unit.id, "", ("",), unit.meta))
    except UserError as error:
        return Bad(unit.id.encode("utf-8", "replace").decode(), "metadata cannot be stored", str(error))
    return Prepared(unit.id, tuple(items), unit.meta)


def _picture(item: bytes | Path, encoder: Encoder | None) -> bytes | np.ndarray:
    data = item.read_bytes() if isinstance(item, Path) else item
    image = images.load(data)  # also where only bytes are stored: a broken picture must not wait for the training
    return data if encoder is None else encoder.prepare(image)


def to_records(units: Iterable[Prepared], encoder: Encoder | None, source: str) -> Iterator[Record]:
    """Yield the records of a shard in order, encoding pictures in full batches (the last of a shard may be smaller)."""
    waiting: deque[Prepared] = deque()
    pictures: list[np.ndarray] = []
    codes: deque[np.ndarray] = deque()
    for unit in units:
        waiting.append(unit)
        pictures += unit.pictures
        while encoder is not None and len(pictures) >= encoder.batch_size:
            codes.extend(_encoded(pictures[: encoder.batch_size], encoder))
            del pictures[: encoder.batch_size]
        yield from _complete(waiting, codes, source)
    if pictures:
        codes.extend(_encoded(pictures, encoder))
    yield from _complete(waiting, codes, source)


def _encoded(pictures: list[np.ndarray], encoder: Encoder) -> np.ndarray:
    codes = np.asarray(encoder.encode(np.stack(pictures)))
    if codes.shape != (len(pictures), CODES_PER_IMAGE) or codes.dtype.kind not in "iu":
        raise UserError(
            f"The tokenizer gave codes of type {codes.dtype} and shape {codes.shape}, expected whole numbers of shape "
            f"{(len(pictures), CODES_PER_IMAGE)}: records hold {CODES_PER_IMAGE} codes a picture."
        )
    if codes.min() < 0 or codes.max() > np.iinfo(np.uint16).max:
        raise UserError(f"The tokenizer gave codes from {codes.min()} to {codes.max()}, expected 0 to 65535.")
    return codes.astype(np.uint16)


def _complete(waiting: deque[Prepared], codes: deque[np.ndarray], source: str) -> Iterator[Record]:
    """Yield the units at the front that have all their codes."""
    while waiting and len(waiting[0].pictures) <= len(codes):
        unit = waiting.popleft()
        items = tuple(codes.popleft() if isinstance(item, np.ndarray) else item for item in unit.items)
        yield Record(unit.id, source, items, unit.meta)

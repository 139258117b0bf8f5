"""From work units to records: check texts, decode pictures and filter them; `encoding.py` turns them into codes."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from seed_jax import images, video
from seed_jax.data.build.encoding import Encoder, Prepared
from seed_jax.data.build.filters import Filtered, Filters, similarity
from seed_jax.data.shards.records import Record, encode
from seed_jax.data.sources.units import Bad, Item, Raw, Slice, Video, text_problem
from seed_jax.errors import UserError

_NO_FILTERS = Filters()


class _RefusedError(Exception):
    """Carries a `Bad` or a `Filtered` out of the middle of a unit."""


def prepare(unit: Raw | Bad, encoder: Encoder | None, filters: Filters = _NO_FILTERS) -> Prepared | Bad | Filtered:
    """Check and decode everything in a work unit; what cannot be used comes back as such, never as an exception."""
    if isinstance(unit, Bad):
        return unit
    if not unit.document and (reason := filters.refuse_similarity(similarity(unit.meta))):
        return Filtered(unit.id, reason)
    try:
        prepared = _prepared(unit, encoder, filters)
        encode(Record(unit.id, "", ("",), unit.meta))
        return prepared
    except _RefusedError as refused:
        return refused.args[0]
    except UserError as error:
        return Bad(unit.id.encode("utf-8", "replace").decode(), "metadata cannot be stored", str(error))


def _prepared(unit: Raw, encoder: Encoder | None, filters: Filters) -> Prepared:
    items: list[str | bytes | np.ndarray] = []
    left_out: Counter[str] = Counter()
    similarities = iter(unit.similarities or ())
    for item in unit.items:
        if isinstance(item, str):
            if problem := text_problem(item):
                raise _RefusedError(Bad(unit.id, problem, repr(item[:80])))
            items.append(item)
            continue
        try:
            if reason := filters.refuse_similarity(next(similarities, None)):
                raise _RefusedError(Filtered(unit.id, reason))
            items += _pictures(unit.id, item, encoder, filters)
        except _RefusedError as refused:
            if not unit.document:
                raise
            left_out[refused.args[0].reason] += 1
    if not unit.items:
        raise _RefusedError(Bad(unit.id, "sample is empty"))
    if left_out and all(isinstance(item, str) for item in items):
        raise _RefusedError(Filtered(unit.id, "no picture of the document is left"))
    return Prepared(unit.id, tuple(items), unit.meta, tuple(left_out.elements()))


def _pictures(name: str, item: Item, encoder: Encoder | None, filters: Filters) -> list[bytes | np.ndarray]:
    """Return what one item holds: a picture, the frames of a video, or codes."""
    if isinstance(item, np.ndarray):
        return [item]
    try:
        if isinstance(item, Video):
            decoded = [(None, frame) for frame in video.frames(item.path, item.frames)]
        else:
            data = item.read_bytes() if isinstance(item, Path | Slice) else item
            # Also where only bytes are stored: a broken picture must not wait for the training.
            decoded = [(data, images.load(data))]
    except UserError as error:
        raise _RefusedError(Bad(name, f"unreadable {_what(item)}", str(error))) from error
    except FileNotFoundError:
        raise _RefusedError(Bad(name, f"missing {_what(item)}", str(item))) from None
    except OSError as error:
        raise _RefusedError(Bad(name, f"unreadable {_what(item)}", str(error))) from error
    for _, image in decoded:
        if reason := filters.refuse_size(*image.size):
            raise _RefusedError(Filtered(name, reason))
    return [encoder.prepare(image) if encoder else data or _as_png(image) for data, image in decoded]


def _what(item: Item) -> str:
    return "video" if isinstance(item, Video) else "picture"


def _as_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()

"""Validate texts, decode images and apply filters; `encoding.py` then tokenizes the images."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from seed_jax import images, video
from seed_jax.data.build.encoding import ImageEncoder, PreparedSample
from seed_jax.data.build.filters import FilteredSample, ImageFilters, similarity
from seed_jax.data.shards.records import Record, encode
from seed_jax.data.sources.samples import FileSlice, Item, RawSample, SkippedSample, Video, text_problem
from seed_jax.errors import UserError

_NO_FILTERS = ImageFilters()
# Control characters that separate text, such as the form feed between the pages of a document.
_BLANK_CONTROLS = dict.fromkeys(map(ord, "\v\f\x1c\x1d\x1e\x1f\x85"), " ")


class _RejectedError(Exception):
    """Carries a SkippedSample or FilteredSample out of nested calls."""

    def __init__(self, rejected: SkippedSample | FilteredSample):
        super().__init__(rejected)
        self.rejected = rejected


def prepare(
    sample: RawSample | SkippedSample, encoder: ImageEncoder | None, filters: ImageFilters = _NO_FILTERS
) -> PreparedSample | SkippedSample | FilteredSample:
    """Validate and decode all items of a sample; unusable samples are returned as such, never raised."""
    if isinstance(sample, SkippedSample):
        return FilteredSample(sample.id, sample.reason) if sample.expected else sample
    if not sample.document and (reason := filters.refuse_similarity(similarity(sample.meta))):
        return FilteredSample(sample.id, reason)
    try:
        prepared = _prepared(sample, encoder, filters)
        encode(Record(sample.id, "", ("",), sample.meta))  # fails here, not in the middle of a shard
        return prepared
    except _RejectedError as error:
        return error.rejected
    except UserError as error:
        return SkippedSample(sample.id.encode("utf-8", "replace").decode(), "metadata cannot be stored", str(error))


def _prepared(sample: RawSample, encoder: ImageEncoder | None, filters: ImageFilters) -> PreparedSample:
    items: list[str | bytes | np.ndarray] = []
    left_out: Counter[str] = Counter()
    similarities = iter(sample.similarities or ())
    for item in sample.items:
        if isinstance(item, str):
            text = item.translate(_BLANK_CONTROLS)
            problem = text_problem(text)
            if problem and not (sample.blank_questions and not text.strip()):
                raise _RejectedError(SkippedSample(sample.id, problem, repr(item[:80])))
            items.append(text)
            continue
        try:
            if reason := filters.refuse_similarity(next(similarities, None)):
                raise _RejectedError(FilteredSample(sample.id, reason))
            items += _decoded(sample.id, item, encoder, filters)
        except _RejectedError as error:
            if not sample.document:
                raise
            left_out[error.rejected.reason] += 1
    if not sample.items:
        raise _RejectedError(SkippedSample(sample.id, "sample is empty"))
    if left_out and all(isinstance(item, str) for item in items):
        raise _RejectedError(FilteredSample(sample.id, "no image of the document is left"))
    return PreparedSample(sample.id, tuple(items), sample.meta, tuple(left_out.elements()))


def _decoded(
    sample_id: str,
    item: FileSlice | Video | Path | bytes | np.ndarray,
    encoder: ImageEncoder | None,
    filters: ImageFilters,
) -> list[bytes | np.ndarray]:
    """Return the images of one item: one image, the frames of a video, or existing codes."""
    if isinstance(item, np.ndarray):
        return [item]
    decoded: list[tuple[bytes | None, Image.Image]]
    try:
        if isinstance(item, Video):
            decoded = [(None, frame) for frame in video.frames(item.path, item.frames)]
        else:
            name = _name(item)
            data = _content(item, name)
            # Decode even if only the bytes are stored: a corrupt image must not surface during training.
            decoded = [(data, images.load(data, name))]
    except FileNotFoundError:
        raise _RejectedError(SkippedSample(sample_id, f"missing {_kind(item)}", str(item))) from None
    except (UserError, OSError) as error:
        raise _RejectedError(SkippedSample(sample_id, f"unreadable {_kind(item)}", str(error))) from error
    for _, image in decoded:
        if reason := filters.refuse_size(*image.size):
            raise _RejectedError(FilteredSample(sample_id, reason))
    return [encoder.prepare(image) if encoder else data or _png(image) for data, image in decoded]


def _name(item: FileSlice | Path | bytes) -> str:
    """Name an image in error messages."""
    if isinstance(item, FileSlice):
        return f"an image in {item.path}"
    return str(item) if isinstance(item, Path) else "an image"


def _content(item: FileSlice | Path | bytes, name: str) -> bytes:
    """Return the bytes of an image file."""
    if isinstance(item, bytes):
        return item
    if isinstance(item, Path):
        return images.read_file(item, name)
    return item.read_bytes()


def _kind(item: Item) -> str:
    return "video" if isinstance(item, Video) else "image"


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()

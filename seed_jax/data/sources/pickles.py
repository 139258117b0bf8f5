"""The original's own shards: tar files of pickles with codes made by its tools (spec D.5); nothing in them is executed.

Each pickle is one sample; the kind of sample follows from its keys. Codes are stored as they are: `--model` only names
the tokenizer that they come from. Tasks: those the pickles were made for.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seed_jax.data.sources.plain_pickle import PickleError, load
from seed_jax.data.sources.samples import (
    InputFile,
    Item,
    RawSample,
    SkippedSample,
    SkipSampleError,
    name_files,
    to_storable,
)
from seed_jax.data.sources.tar_groups import TarGroup, find_tars, groups
from seed_jax.data.text.vocabulary import CODES_PER_IMAGE

KINDS = {"pkl": "pickle"}
_IMAGES = ("image_ids", "source_image_ids", "target_image_ids")
_TEXT_KEYS = (
    tuple(f"caption{number}" for number in range(5)),
    tuple(f"instruction{number}" for number in range(3)),
    ("question", "answer"),
    ("instruction", "inputs", "outputs"),
    ("instruction",),
    ("text",),
    ("answer",),
)
"""The texts of a sample are under the first of these groups of keys that is complete."""


class PicklesSource:
    """Read tar files of pickles; one sample per pickle."""

    kind = "pickles"

    def __init__(self, paths: Sequence[str | Path]):
        self.files = name_files([file for path in paths for file in find_tars(Path(path))])
        self.options: dict[str, Any] = {}

    def count(self, file: InputFile) -> int:
        return sum(1 for _ in groups(file.path, 0, 0, KINDS))

    def read(self, file: InputFile, start: int, stop: int) -> Iterator[RawSample | SkippedSample]:
        for group in itertools.islice(groups(file.path, start, stop, KINDS), start, stop):
            yield _convert(f"{file.name}/{group.key}", group)


def _convert(name: str, group: TarGroup) -> RawSample | SkippedSample:
    if group.problem is not None:
        return dataclasses.replace(group.problem, id=name)
    if "pkl" not in group.contents:
        reason = "pickle is truncated" if group.kinds else "no pickle"
        return SkippedSample(name, reason, f"files: {', '.join(group.extensions)}")
    try:
        content = load(group.contents["pkl"])
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            raise SkipSampleError("pickle is not a sample", f"a {type(content).__name__}")
        return _sample(name, content)
    except PickleError as error:
        return SkippedSample(name, "pickle is not plain data", str(error))
    except SkipSampleError as error:
        return error.skipped(name)


def _sample(name: str, content: dict[str, Any]) -> RawSample:
    if isinstance(content.get("texts"), list):
        return RawSample(name, _document(content), _metadata(content, ("image_ids", "texts")))
    images = [image for key in _IMAGES if key in content for image in _image_codes(content[key])]
    used: tuple[str, ...]
    if isinstance(content.get("data"), list):
        texts = content["data"]
        used = ("data",)
    else:
        used = next((keys for keys in _TEXT_KEYS if set(keys) <= content.keys()), ())
        texts = [content[key] for key in used]
    if not all(isinstance(text, str) for text in texts):
        raise SkipSampleError("a field of the pickle is not text", ", ".join(used))
    if used == ("instruction", "inputs", "outputs"):  # templates need the names, and one text may be blank
        return RawSample(name, tuple(images), _metadata(content, _IMAGES))
    if used == ("question", "answer"):  # in the metadata, a question differs from a second caption
        return RawSample(name, (*images, texts[1]), _metadata(content, (*_IMAGES, "answer")))
    return RawSample(name, (*images, *texts), _metadata(content, (*_IMAGES, *used)))


def _document(content: dict[str, Any]) -> tuple[Item, ...]:
    """Return the items of a document: at each position a text or the codes of an image."""
    images = content.get("image_ids")
    texts = content["texts"]
    if not isinstance(images, list) or len(images) != len(texts):
        raise SkipSampleError("not a document", "image_ids and texts are not lists of equal length")
    items: list[Item] = []
    for image, text in zip(images, texts, strict=True):
        if (image is None) == (text is None) or not isinstance(text, str | None):
            raise SkipSampleError("not a document", "an entry is neither a text nor an image")
        items += [text] if isinstance(text, str) else _image_codes(image)
    return tuple(items)


def _image_codes(value: Any) -> list[np.ndarray]:
    """Split a flat list of codes, or a list of such lists, into images: uint16 [32] each."""
    try:
        codes = np.asarray(value)
    except ValueError as error:
        raise SkipSampleError("images without 32 codes each", str(error)) from error
    is_flat = codes.ndim == 1 and codes.size and codes.size % CODES_PER_IMAGE == 0
    is_list = codes.ndim == 2 and codes.size and codes.shape[1] == CODES_PER_IMAGE
    if codes.dtype.kind not in "iu" or not (is_flat or is_list):
        raise SkipSampleError("images without 32 codes each", f"{codes.dtype} {list(codes.shape)}")
    if codes.min() < 0 or codes.max() > np.iinfo(np.uint16).max:
        raise SkipSampleError("codes out of range", f"{codes.min()} to {codes.max()}")
    return list(codes.reshape(-1, CODES_PER_IMAGE).astype(np.uint16))


def _metadata(content: dict[str, Any], used: Sequence[str]) -> dict[str, Any]:
    """Return the remaining values of a sample, merged with the entries of its own `metadata`."""
    own = {key: value for key, value in content.items() if key not in used and key != "metadata"}
    nested = content.get("metadata")
    return _arrays_to_lists(to_storable({**(nested if isinstance(nested, dict) else {}), **own}))


def _arrays_to_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _arrays_to_lists(element) for key, element in value.items()}
    if isinstance(value, list):
        return [_arrays_to_lists(element) for element in value]
    return value.tolist() if isinstance(value, np.ndarray) else value

"""The original's own shards: tars of pickles with codes that its tools made (spec D.5); nothing in them is run.

Each pickle is one sample; which kind of sample follows from its keys. Its codes are stored as they are, so `--model`
here only names the tokenizer that they come from. Tasks: as the pickle was made for.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seed_jax.data.sources.plain_pickle import PickleError, load
from seed_jax.data.sources.tar_groups import Group, groups, tars
from seed_jax.data.sources.units import Bad, InputFile, Item, Raw, UnusableError, named, plain
from seed_jax.data.text.vocabulary import CODES_PER_IMAGE

_IMAGES = ("image_ids", "source_image_ids", "target_image_ids")
_CAPTIONS = tuple(f"caption{number}" for number in range(5))
_INSTRUCTIONS = tuple(f"instruction{number}" for number in range(3))
_ORDERED = (
    _CAPTIONS,
    _INSTRUCTIONS,
    ("question", "answer"),
    ("instruction", "inputs", "outputs"),
    ("instruction",),
    ("text",),
    ("answer",),
)


class PicklesSource:
    """Read tars of pickles; a work unit is a pickle."""

    kind = "pickles"

    def __init__(self, paths: Sequence[str | Path]):
        self.files = named([file for path in paths for file in tars(Path(path))])
        self.options: dict[str, Any] = {}

    def count(self, file: InputFile) -> int:
        return sum(1 for _ in groups(file.path, 0, 0, ("pkl",)))

    def read(self, file: InputFile, start: int, stop: int) -> Iterator[Raw | Bad]:
        for group in itertools.islice(groups(file.path, start, stop, ("pkl",)), start, stop):
            yield _unit(f"{file.name}/{group.key}", group)


def _unit(name: str, group: Group) -> Raw | Bad:
    if group.problem is not None:
        return dataclasses.replace(group.problem, id=name)
    if "pkl" not in group.contents:  # the tar breaks off within it
        return Bad(name, "pickle is not whole")
    try:
        content = load(group.contents["pkl"])
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            raise UnusableError("pickle is not a sample", f"a {type(content).__name__}")
        return _sample(name, content)
    except PickleError as error:
        return Bad(name, "pickle is not plain data", str(error))
    except UnusableError as error:
        return Bad(name, error.reason, error.detail)


def _sample(name: str, content: dict[str, Any]) -> Raw:
    if isinstance(content.get("texts"), list):
        return Raw(name, _document(content), _metadata(content, ("image_ids", "texts")))
    pictures = [picture for key in _IMAGES if key in content for picture in _pictures(content[key])]
    if isinstance(content.get("data"), list):
        texts, used = content["data"], ("data",)
    else:
        used = next((keys for keys in _ORDERED if set(keys) <= content.keys()), ())
        texts = [content[key] for key in used]
    if not all(isinstance(each, str) for each in texts):
        raise UnusableError("a field of the pickle is no text", ", ".join(used))
    if used == ("instruction", "inputs", "outputs"):  # of which templates need the names, and one may be blank
        return Raw(name, tuple(pictures), _metadata(content, _IMAGES))
    if used == ("question", "answer"):  # the question apart, which tells it from a picture with two captions
        return Raw(name, (*pictures, texts[1]), _metadata(content, (*_IMAGES, "answer")))
    return Raw(name, (*pictures, *texts), _metadata(content, (*_IMAGES, *used)))


def _document(content: dict[str, Any]) -> tuple[Item, ...]:
    """Return the items of a document: at each place a text or the codes of a picture."""
    images, texts = content.get("image_ids"), content["texts"]
    if not isinstance(images, list) or len(images) != len(texts):
        raise UnusableError("not a document", "image_ids and texts are no lists of one length")
    items: list[Item] = []
    for image, text in zip(images, texts, strict=True):
        if (image is None) == (text is None) or not isinstance(text, str | None):
            raise UnusableError("not a document", "an entry is neither a text nor a picture")
        items += [text] if image is None else _pictures(image)
    return tuple(items)


def _pictures(value: Any) -> list[np.ndarray]:
    """Return the pictures in a flat list of codes, or in a list of such lists."""
    try:
        codes = np.asarray(value)
    except ValueError as error:
        raise UnusableError("pictures without 32 codes each", str(error)) from error
    whole = codes.dtype.kind in "iu" and 1 <= codes.ndim <= 2 and codes.size and codes.shape[-1] % CODES_PER_IMAGE == 0
    if not whole or (codes.ndim == 2 and codes.shape[1] != CODES_PER_IMAGE):
        raise UnusableError("pictures without 32 codes each", f"{codes.dtype} {list(codes.shape)}")
    if codes.min() < 0 or codes.max() > np.iinfo(np.uint16).max:
        raise UnusableError("codes out of range", f"{codes.min()} to {codes.max()}")
    return list(codes.reshape(-1, CODES_PER_IMAGE).astype(np.uint16))


def _metadata(content: dict[str, Any], used: Sequence[str]) -> dict[str, Any]:
    """Return what else a sample has; the pickles' own `metadata` is taken apart."""
    own = {key: value for key, value in content.items() if key not in used and key != "metadata"}
    nested = content.get("metadata")
    return _listed(plain({**(nested if isinstance(nested, dict) else {}), **own}))


def _listed(value: Any) -> Any:
    """Return metadata with arrays as lists."""
    if isinstance(value, dict):
        return {str(key): _listed(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_listed(each) for each in value]
    return value.tolist() if isinstance(value, np.ndarray) else value

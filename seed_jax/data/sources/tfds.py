"""Data sets of tensorflow-datasets that were prepared with `file_format="array_record"`; no TensorFlow is needed.

`--from` names their folders (with `dataset_info.json`), `--split` the split, `--columns` the features that become items
in their order, e.g. `image,captions/text`; a sequence gives several items. Features of numbers and texts become
metadata. The task follows from the columns, see the table in `fields.py`.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seed_jax.data.sources.parquet import LAYOUTS, QUESTION, metadata
from seed_jax.data.sources.units import Bad, InputFile, Item, Raw, UnusableError, found, named
from seed_jax.errors import UserError

_LAYOUTS = (("image", "captions/text"), *LAYOUTS)  # the first is that of coco_captions
_INFO = "dataset_info.json"


class TfdsSource:
    """Read a split of prepared data sets; a work unit is an example."""

    kind = "tfds"

    def __init__(self, paths: Sequence[str | Path], *, split: str = "train", columns: Sequence[str] | None = None):
        self.files = named(found(paths, (_INFO,), f"data sets of tfds with their {_INFO}"))
        self.split = split
        self._open = functools.lru_cache(maxsize=1)(_opened)
        names = _names(self._data(self.files[0]).dataset_info.features)
        self.columns = tuple(columns or next((each for each in _LAYOUTS if set(each) <= names), ()))
        if not self.columns or not set(self.columns) <= names:
            raise UserError(
                f"{self.files[0].path.parent} has the features {', '.join(sorted(names))}: "
                "name those with pictures and texts with --columns."
            )
        self.options: dict[str, Any] = {"split": split, "columns": list(self.columns)}

    def count(self, file: InputFile) -> int:
        return len(self._data(file))

    def read(self, file: InputFile, start: int, stop: int) -> Iterator[Raw | Bad]:
        data = self._data(file)
        for number in range(start, min(stop, len(data))):
            name = f"{file.name.removesuffix(_INFO)}{self.split}:{number + 1}"
            try:
                yield self._unit(name, data[number])
            except UnusableError as error:
                yield Bad(name, error.reason, error.detail)
            except (RuntimeError, ValueError) as error:  # what ArrayRecord and the example parser raise
                yield Bad(name, "damaged record", str(error).splitlines()[0])

    def _data(self, file: InputFile) -> Any:
        return self._open(file.path.parent, self.split)

    def _unit(self, name: str, example: dict[str, Any]) -> Raw:
        columns = [name for name in self.columns if name != QUESTION]
        items = tuple(item for column in columns for item in _items(column, example))
        used = {column.partition("/")[0] for column in columns} | set(columns)
        return Raw(name, items, metadata({key: _plain(value) for key, value in example.items() if key not in used}))


def _opened(folder: Path, split: str) -> Any:
    """Return the examples of a split, with pictures as they were encoded."""
    import tensorflow_datasets as tfds  # late: it takes a moment, and only this source needs it

    try:
        builder = tfds.builder_from_directory(folder)
        features = builder.info.features
        pictures = [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]
        return builder.as_data_source(split, decoders={name: tfds.decode.SkipDecoding() for name in pictures})
    except (OSError, ValueError, NotImplementedError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"Split {split!r} of {folder} cannot be read ({reason}): prepare it as array_record."
        ) from error


def _names(features: Any) -> set[str]:
    """Return the names of all features, `captions/text` for one inside another."""
    found = set()
    for name, feature in features.items():
        inner = getattr(feature, "feature", feature)
        found |= {name, *(f"{name}/{each}" for each in _names(inner))} if hasattr(inner, "items") else {name}
    return found


def _items(column: str, example: dict[str, Any]) -> list[Item]:
    value = example.get(column)
    if value is None:
        outer, _, inner = column.partition("/")
        value = (example.get(outer) or {}).get(inner)
    values = value if isinstance(value, list | np.ndarray) else [value]
    return [_item(each, column) for each in values]


def _item(value: Any, column: str) -> Item:
    """Return a text or a picture: tfds gives both as bytes."""
    if not isinstance(value, bytes) or not value:
        raise UnusableError("a feature is neither text nor picture" if value else "empty feature", column)
    if value[:3] in (b"\xff\xd8\xff", b"\x89PN", b"GIF") or value[:4] == b"RIFF" or value[:2] == b"BM":
        return value
    return value.decode("utf-8", "surrogateescape")


def _plain(value: Any) -> Any:
    """Return numbers and texts as Python has them."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

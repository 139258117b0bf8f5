"""Datasets of tensorflow-datasets prepared with `file_format="array_record"`; TensorFlow is not needed.

`--from` names their folders (with `dataset_info.json`), `--split` the split, `--columns` the features that become items
in their order, e.g. `image,captions/text`; a sequence gives several items. Numeric and text features become metadata.
The task follows from the columns, see the table in `seed_jax/data/templates/record_fields.py`.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seed_jax.data.sources.image_lookup import is_image_file
from seed_jax.data.sources.parquet import LAYOUTS, QUESTION, metadata
from seed_jax.data.sources.samples import (
    InputFile,
    Item,
    RawSample,
    SkippedSample,
    SkipSampleError,
    find_files,
    name_files,
)
from seed_jax.errors import UserError

_LAYOUTS = (("image", "captions/text"), *LAYOUTS)  # the first is that of coco_captions
_INFO = "dataset_info.json"


class TfdsSource:
    """Read a split of prepared datasets; one sample per example."""

    kind = "tfds"

    def __init__(self, paths: Sequence[str | Path], *, split: str = "train", columns: Sequence[str] | None = None):
        self.files = name_files(find_files(paths, (_INFO,), f"tfds datasets with their {_INFO}"))
        self.split = split
        self._open = functools.lru_cache(maxsize=1)(_open_split)
        names = _feature_names(self._data(self.files[0]).dataset_info.features)
        self.columns = tuple(columns or next((layout for layout in _LAYOUTS if set(layout) <= names), ()))
        if not self.columns or not set(self.columns) <= names:
            raise UserError(
                f"{self.files[0].path.parent} has the features {', '.join(sorted(names))}: "
                "name those with images and texts with --columns."
            )
        self.options: dict[str, Any] = {"split": split, "columns": list(self.columns)}

    def count(self, file: InputFile) -> int:
        return len(self._data(file))

    def read(self, file: InputFile, start: int, stop: int) -> Iterator[RawSample | SkippedSample]:
        data = self._data(file)
        for number in range(start, min(stop, len(data))):
            name = f"{file.name.removesuffix(_INFO)}{self.split}:{number + 1}"
            try:
                yield self._sample(name, data[number])
            except SkipSampleError as error:
                yield error.skipped(name)
            except (RuntimeError, ValueError) as error:  # raised by ArrayRecord and the example parser
                yield SkippedSample(name, "damaged record", str(error).splitlines()[0])

    def _data(self, file: InputFile) -> Any:
        return self._open(file.path.parent, self.split)

    def _sample(self, name: str, example: dict[str, Any]) -> RawSample:
        columns = [name for name in self.columns if name != QUESTION]
        items = tuple(item for column in columns for item in _items(column, example))
        used = {column.partition("/")[0] for column in columns} | set(columns)
        meta = metadata({key: _to_python(value) for key, value in example.items() if key not in used})
        return RawSample(name, items, meta)


def _open_split(folder: Path, split: str) -> Any:
    """Return the examples of a split, with images still encoded."""
    import tensorflow_datasets  # slow to import, and needed by this source only

    tfds: Any = tensorflow_datasets

    try:
        builder = tfds.builder_from_directory(folder)
        features = builder.info.features
        images = [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]
        return builder.as_data_source(split, decoders={name: tfds.decode.SkipDecoding() for name in images})
    except (OSError, ValueError, NotImplementedError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"Split {split!r} of {folder} cannot be read ({reason}): prepare the dataset as array_record."
        ) from error


def _feature_names(features: Any) -> set[str]:
    """Return the names of all features, `captions/text` for one nested in another."""
    names = set()
    for name, feature in features.items():
        inner = getattr(feature, "feature", feature)
        nested = _feature_names(inner) if hasattr(inner, "items") else set()
        names |= {name, *(f"{name}/{nested_name}" for nested_name in nested)}
    return names


def _items(column: str, example: dict[str, Any]) -> list[Item]:
    value = example.get(column)
    if value is None:
        outer, _, inner = column.partition("/")
        value = (example.get(outer) or {}).get(inner)
    values = value if isinstance(value, list | np.ndarray) else [value]
    return [_item(element, column) for element in values]


def _item(value: Any, column: str) -> Item:
    """Return a text or an image: tfds gives both as bytes."""
    if not isinstance(value, bytes) or not value:
        raise SkipSampleError("a feature is neither text nor image" if value else "empty feature", column)
    if is_image_file(value):
        return value
    return value.decode("utf-8", "surrogateescape")


def _to_python(value: Any) -> Any:
    """Convert NumPy values to Python values and bytes to text."""
    if isinstance(value, dict):
        return {key: _to_python(element) for key, element in value.items()}
    if isinstance(value, list):
        return [_to_python(element) for element in value]
    if isinstance(value, np.ndarray | np.generic):
        return _to_python(value.tolist())
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

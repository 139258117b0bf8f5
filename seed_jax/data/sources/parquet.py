"""Parquet files such as those of the Hugging Face hub: images, texts and lists of them in columns.

`--columns` names the columns that become items, in their order; by default the first of `LAYOUTS` that fits. An image
column holds bytes, or `{"bytes": ..., "path": ...}`; a list column gives several items. Other numeric and text columns
become metadata. The task follows from the columns, see the table in `seed_jax/data/templates/record_fields.py`.
"""

import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from seed_jax.data.sources.samples import (
    InputFile,
    Item,
    RawSample,
    SkippedSample,
    SkipSampleError,
    find_files,
    name_files,
    to_storable,
)
from seed_jax.errors import UserError

LAYOUTS = (
    ("source_img", "target_img", "instruction"),  # MagicBrush
    ("original_image", "edited_image", "edit_prompt"),  # InstructPix2Pix
    ("image", "question", "answer"),
    ("image", "caption"),
    ("image", "captions"),
    ("image", "text"),
    ("jpg", "txt"),
    ("text",),
)
QUESTION = "question"
_DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, IndexError)  # raised by pyarrow for damaged files
_ROWS_PER_BATCH = 16  # in memory at once: each row may hold several images


class ParquetSource:
    """Read parquet files; one sample per row."""

    kind = "parquet"

    def __init__(self, paths: Sequence[str | Path], *, columns: Sequence[str] | None = None):
        self.files = name_files(find_files(paths, ("*.parquet",), "parquet files"))
        self.columns = tuple(columns or _known_layout(self.files[0].path))
        # A question stays in the metadata, which distinguishes it from an image with two captions.
        self.items = tuple(name for name in self.columns if name != QUESTION)
        self.options: dict[str, Any] = {"columns": list(self.columns)}
        for file in self.files:
            names = parquet_file(file.path).schema_arrow.names
            if missing := [name for name in self.columns if name not in names]:
                raise UserError(
                    f"{file.path} has no column {', '.join(missing)}: choose from {', '.join(names)} with --columns."
                )

    def count(self, file: InputFile) -> int:
        return row_count(file.path)

    def read(self, file: InputFile, start: int, stop: int) -> Iterator[RawSample | SkippedSample]:
        for number, row in rows(file.path, start, stop, self._columns(file)):
            name = f"{file.name}:{number + 1}"
            yield row if isinstance(row, SkippedSample) else self._sample(name, row)

    def _columns(self, file: InputFile) -> list[str]:
        """Return the columns to read: items, and possible metadata."""
        schema = parquet_file(file.path).schema_arrow
        return [field.name for field in schema if field.name in self.columns or not _has_bytes(field.type)]

    def _sample(self, name: str, row: dict[str, Any]) -> RawSample | SkippedSample:
        try:
            items = tuple(item for column in self.items for item in items_of(column, row[column]))
        except SkipSampleError as error:
            return SkippedSample(name, error.reason, error.detail)
        return RawSample(name, items, metadata({key: value for key, value in row.items() if key not in self.items}))


def parquet_file(path: Path) -> pq.ParquetFile:
    """Open a parquet file; UserError if it is not one or is truncated."""
    try:
        file = pq.ParquetFile(path)
        _ = file.schema_arrow.names  # the schema is parsed lazily
        return file
    except _DAMAGE as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is not a complete parquet file ({reason}): download it again.") from error


def row_count(path: Path) -> int:
    """Return the number of rows of all row groups."""
    metadata = parquet_file(path).metadata
    return sum(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))


def rows(
    path: Path, start: int, stop: int, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any] | SkippedSample]]:
    """Yield the rows [start, stop) with their numbers; rows of an unreadable row group as SkippedSample."""
    file = parquet_file(path)
    first = 0
    for group in range(file.metadata.num_row_groups):
        end = first + file.metadata.row_group(group).num_rows
        number = first
        low = max(start, first)
        high = min(stop, end)
        first = end
        if low >= high:
            continue
        try:
            for batch in file.iter_batches(_ROWS_PER_BATCH, row_groups=[group], columns=list(columns)):
                wanted = batch.slice(max(low - number, 0), max(high - max(low, number), 0)) if number < high else None
                yield from enumerate(wanted.to_pylist() if wanted else (), max(low, number))
                number += batch.num_rows
            problem = "fewer rows than its metadata states"
        except _DAMAGE as error:
            problem = str(error).splitlines()[0]
        for missing in range(max(number, low), high):
            yield missing, SkippedSample(f"{path.name}:{missing + 1}", "damaged row group", problem)


def items_of(column: str, value: Any) -> list[Item]:
    """Return the items in a cell: a text, an image, or several."""
    if isinstance(value, list):
        return [item for element in value for item in items_of(column, element)]
    if isinstance(value, dict):
        value = value.get("bytes")
    if isinstance(value, str):
        return [value]
    if isinstance(value, bytes) and value:
        return [value]
    raise SkipSampleError("empty cell" if value in (None, b"") else "a cell is neither text nor image", column)


def metadata(row: dict[str, Any]) -> dict[str, Any]:
    """Return the storable values of a row: numbers, texts, and lists and objects of them."""
    return {key: to_storable(value) for key, value in row.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | dict):
        return all(map(_is_plain, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str | int | float | bool | None) and not isinstance(value, datetime.date)


def _has_bytes(kind: pa.DataType) -> bool:
    inner = [kind.field(index).type for index in range(kind.num_fields)]
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or any(map(_has_bytes, inner))


def _known_layout(path: Path) -> tuple[str, ...]:
    names = parquet_file(path).schema_arrow.names
    for layout in LAYOUTS:
        if set(layout) <= set(names):
            return layout
    raise UserError(f"{path} has the columns {', '.join(names)}: name those with images and texts with --columns.")

"""Parquet files such as those of the Hugging Face hub: images, texts and lists of them in columns.

`--columns` names the columns that become items, in their order; by default the first of `LAYOUTS` that fits. An image
column holds bytes, `{"bytes": ..., "path": ...}`, base64, or file names to look up in `--images` (default: the
folder of the parquet file). A list column gives several items; a column of turns (`{"from": ..., "value": ...}`) a
conversation. Other numeric and text columns become metadata. Rows that img2dataset could not download are counted apart
from unusable ones. The task follows from the columns, see the table in `seed_jax/data/templates/record_fields.py`.
"""

import datetime
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from seed_jax.data.sources.image_lookup import ImageLookup, inline_image, is_image_name
from seed_jax.data.sources.listed import without_blanks
from seed_jax.data.sources.llava import conversation_texts
from seed_jax.data.sources.samples import (
    InputFile,
    Item,
    RawSample,
    SkippedSample,
    SkipSampleError,
    failed_download,
    find_files,
    name_files,
    to_storable,
)
from seed_jax.errors import UserError
from seed_jax.files import check_regular, parse_json

LAYOUTS = (
    ("source_img", "target_img", "instruction"),  # MagicBrush
    ("original_image", "edited_image", "edit_prompt"),  # InstructPix2Pix
    ("image", "question", "answer"),
    ("image", "conversations"),
    ("image", "caption"),
    ("image", "captions"),
    ("image", "text"),
    ("jpg", "txt"),
    ("jpg", "caption"),  # img2dataset
    ("text",),
)
QUESTION = "question"
# Columns whose texts are the names or the base64 of images, whatever they look like.
IMAGE_COLUMNS = {
    *("image", "images", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "image_path", "image_base64"),
    *("source_img", "target_img", "source_image", "target_image", "original_image", "edited_image"),
}
# Columns whose texts are texts, even if they look like the name of an image.
TEXT_COLUMNS = {
    *("caption", "captions", "text", "texts", "txt", "title", "question", "answer", "instruction", "edit_prompt"),
}
_DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, IndexError)  # raised by pyarrow for damaged files
_ROWS_PER_BATCH = 16  # in memory at once: each row may hold several images
_BATCH_BYTES = 256 * 2**20
_MAX_DENSE_ROWS = 10**6  # that may take less than a byte each


class ParquetSource:
    """Read parquet files; one sample per row.

    Args:
        paths: parquet files and folders of them.
        columns: columns that become items.
        images: location of the images that are named in columns.
    """

    kind = "parquet"

    def __init__(
        self,
        paths: Sequence[str | Path],
        *,
        columns: Sequence[str] | None = None,
        images: str | Path | None = None,
    ):
        self.files = name_files(find_files(paths, ("*.parquet",), "parquet files"))
        self.columns = tuple(columns or _known_layout(self.files[0].path))
        # A question stays in the metadata, which distinguishes it from an image with two captions.
        self.items = tuple(name for name in self.columns if name != QUESTION)
        self.options: dict[str, Any] = {"columns": list(self.columns)}
        self.images = ImageLookup(images)
        self.image_columns = IMAGE_COLUMNS | _declared_images(parquet_file(self.files[0].path).schema_arrow)
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
            yield row if isinstance(row, SkippedSample) else self._sample(name, row, file)

    def _columns(self, file: InputFile) -> list[str]:
        """Return the columns to read: items, and possible metadata."""
        schema = parquet_file(file.path).schema_arrow
        return [field.name for field in schema if field.name in self.columns or not _has_bytes(field.type)]

    def _sample(self, name: str, row: dict[str, Any], file: InputFile) -> RawSample | SkippedSample:
        meta = metadata({key: value for key, value in row.items() if key not in self.items})
        conversations = [column for column in self.items if _is_conversation(row[column])]
        try:
            items = [
                item
                for column in self.items
                if column not in conversations
                for item in self._items(column, row[column], file)
            ]
            for column in conversations:
                items += conversation_texts(row[column], sum(not isinstance(item, str) for item in items))
        except SkipSampleError as error:
            return failed_download(name, row) or error.skipped(name)
        return RawSample(name, tuple(items), meta, blank_questions=bool(conversations))

    def _items(self, column: str, value: Any, file: InputFile) -> list[Item]:
        """Return the items in a cell: a text, an image, or several."""
        if isinstance(value, list):
            texts = without_blanks([element for element in value if isinstance(element, str)])
            kept = [element for element in value if not isinstance(element, str) or element in texts]
            return [item for element in kept for item in self._items(column, element, file)]
        is_image = column in self.image_columns
        if isinstance(value, dict) and ("bytes" in value or "path" in value):
            value = value.get("bytes") or value.get("path")
            is_image = True
        if isinstance(value, bytes) and value:
            return [value]
        if isinstance(value, str):
            image = inline_image(value)
            is_image = is_image or (column not in TEXT_COLUMNS and is_image_name(value))
            return [image or (self.images.find(value, file.path) if is_image else value)]
        if value in (None, b""):
            raise SkipSampleError("empty cell", column)
        found = f" with {', '.join(map(str, value))}" if isinstance(value, dict) else ""
        raise SkipSampleError("a cell is neither text nor image", f"{column} holds a {type(value).__name__}{found}")


def parquet_file(path: Path) -> pq.ParquetFile:
    """Open a parquet file; UserError if it is not one or is truncated."""
    size = check_regular(path)
    try:
        file = pq.ParquetFile(path)
        _ = file.schema_arrow.names  # the schema is parsed lazily
        counts = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        # Each unreadable row is counted: a damaged number of rows must not become billions of them.
        if min(counts, default=0) < 0 or sum(counts) > max(_MAX_DENSE_ROWS, size):
            raise ValueError(f"it claims to have {sum(counts)} rows in {size} bytes")
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
            # With a dictionary, each row can be a repetition of the largest value of the row group.
            largest = max(1, file.metadata.row_group(group).total_byte_size)
            size = max(1, min(_ROWS_PER_BATCH, _BATCH_BYTES // largest))
            for batch in file.iter_batches(size, row_groups=[group], columns=list(columns)):
                wanted = batch.slice(max(low - number, 0), max(high - max(low, number), 0)) if number < high else None
                yield from enumerate(wanted.to_pylist() if wanted else (), max(low, number))
                number += batch.num_rows
            problem = "fewer rows than its metadata states"
        except _DAMAGE as error:
            problem = str(error).splitlines()[0]
        for missing in range(max(number, low), high):
            yield missing, SkippedSample(f"{path.name}:{missing + 1}", "damaged row group", problem)


def _is_conversation(value: Any) -> bool:
    """Whether a cell is a list of turns: objects with a role."""
    return isinstance(value, list) and any(isinstance(turn, dict) and {"from", "role"} & turn.keys() for turn in value)


def _declared_images(schema: pa.Schema) -> set[str]:
    """Return the columns that the datasets library declares as images."""
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name for name, feature in features.items() if '"Image"' in json.dumps(feature)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return set()


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

"""OBELICS documents: parquet rows with parallel lists `images` and `texts`. Task: pretrain.interleaved.

`images` holds URLs; `--images` names the tar files that img2dataset made of them, in which images are looked up by
`url`. Rows that contain the images themselves need no tar files. Missing and filtered images are left out; a document
without any image left is skipped. A folder of tar files named like its parquet file is used for that file only, which
keeps the URL table small.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from seed_jax.data.sources.image_lookup import tars_of_list
from seed_jax.data.sources.parquet import parquet_file, row_count, rows
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
from seed_jax.data.sources.tar_index import UrlIndex
from seed_jax.errors import UserError
from seed_jax.files import parse_json

COLUMNS = ("images", "texts")
METADATA = "general_metadata"


class ObelicsSource:
    """Read OBELICS files; one sample per document."""

    kind = "obelics"

    def __init__(self, paths: Sequence[str | Path], *, images: str | Path | None = None):
        self.files = name_files(find_files(paths, ("*.parquet",), "OBELICS files"))
        self.options: dict[str, Any] = {}
        self._images = None if images is None else Path(images)
        self._index = functools.lru_cache(maxsize=1)(self._build_index)
        if self._images is not None and not self._images.exists():
            raise UserError(f"--images {images} does not exist: expected tar files made by img2dataset.")
        for file in self.files:
            names = parquet_file(file.path).schema_arrow.names
            if not set(COLUMNS) <= set(names):
                raise UserError(f"{file.path} has the columns {', '.join(names)}, expected {' and '.join(COLUMNS)}.")

    def count(self, file: InputFile) -> int:
        return row_count(file.path)

    def read(self, file: InputFile, start: int, stop: int) -> Iterator[RawSample | SkippedSample]:
        for number, row in rows(file.path, start, stop, self._columns(file)):
            name = f"{file.name}:{number + 1}"
            try:
                yield row if isinstance(row, SkippedSample) else self._sample(name, row, self._index(file.path))
            except SkipSampleError as error:
                yield error.skipped(name)

    def _columns(self, file: InputFile) -> list[str]:
        return [name for name in (*COLUMNS, METADATA) if name in parquet_file(file.path).schema_arrow.names]

    def _sample(self, name: str, row: dict[str, Any], index: UrlIndex | None) -> RawSample:
        images = row["images"]
        texts = row["texts"]
        if not isinstance(images, list) or not isinstance(texts, list) or len(images) != len(texts):
            raise SkipSampleError("not a document", "images and texts are not lists of equal length")
        items: list[Item] = []
        for cell, text in zip(images, texts, strict=True):
            if isinstance(text, str) and text.strip():
                items.append(text)
            elif (image := _image(cell, index)) is not None:
                items.append(image)
        if not any(not isinstance(item, str) for item in items):
            num_named = sum(cell is not None for cell in images)
            raise SkipSampleError("no image of the document is available", f"{num_named} named")
        return RawSample(name, tuple(items), _metadata(row), document=True)

    def _build_index(self, path: Path) -> UrlIndex | None:
        return None if self._images is None else UrlIndex(tars_of_list(self._images, path))


def _image(cell: Any, index: UrlIndex | None) -> Item | None:
    """Return the image in a cell or its location, or None if it is not available."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        return cell or None
    return index.find(cell) if isinstance(cell, str) and index is not None else None


def _metadata(row: dict[str, Any]) -> dict[str, Any]:
    """Return the URL of the page, which OBELICS keeps in a JSON string."""
    try:
        content = parse_json(row.get(METADATA) or "{}")
    except (ValueError, TypeError):
        return {}
    url = content.get("url") if isinstance(content, dict) else None
    return {"url": to_storable(url)} if isinstance(url, str) else {}

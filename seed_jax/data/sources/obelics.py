"""OBELICS documents: parquet rows with parallel lists `images` and `texts`. Task: pretrain.interleaved.

`images` has the addresses of the pictures; `--images` names the tars that img2dataset made of them, in which they are
found by `url`. Rows that carry the pictures themselves need no tars. Pictures that are not there are left out, and so
is what the filters refuse; a document without any picture left is refused. A folder of tars named like its parquet
file is used for that file alone, which keeps the table of addresses small.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from seed_jax.data.sources.parquet import parquet_file, row_count, rows
from seed_jax.data.sources.pictures_at import tars_for
from seed_jax.data.sources.tar_index import AddressIndex
from seed_jax.data.sources.units import Bad, InputFile, Item, Raw, UnusableError, found, named, plain
from seed_jax.errors import UserError

COLUMNS, METADATA = ("images", "texts"), "general_metadata"


class ObelicsSource:
    """Read OBELICS files; a work unit is a document."""

    kind = "obelics"

    def __init__(self, paths: Sequence[str | Path], *, images: str | Path | None = None):
        self.files = named(found(paths, ("*.parquet",), "OBELICS files"))
        self.options: dict[str, Any] = {}
        self._place = None if images is None else Path(images)
        self._index = functools.lru_cache(maxsize=1)(self._index_for)
        if self._place is not None and not self._place.exists():
            raise UserError(f"--images {images} does not exist: expected tars made by img2dataset.")
        for file in self.files:
            names = parquet_file(file.path).schema_arrow.names
            if not set(COLUMNS) <= set(names):
                raise UserError(f"{file.path} has the columns {', '.join(names)}, expected {' and '.join(COLUMNS)}.")

    def count(self, file: InputFile) -> int:
        return row_count(file.path)

    def read(self, file: InputFile, start: int, stop: int) -> Iterator[Raw | Bad]:
        for number, row in rows(file.path, start, stop, self._columns(file)):
            name = f"{file.name}:{number + 1}"
            try:
                yield row if isinstance(row, Bad) else self._unit(name, row, self._index(file.path))
            except UnusableError as error:
                yield Bad(name, error.reason, error.detail)

    def _columns(self, file: InputFile) -> list[str]:
        return [name for name in (*COLUMNS, METADATA) if name in parquet_file(file.path).schema_arrow.names]

    def _unit(self, name: str, row: dict[str, Any], index: AddressIndex | None) -> Raw:
        pictures, texts = row["images"], row["texts"]
        if not isinstance(pictures, list) or not isinstance(texts, list) or len(pictures) != len(texts):
            raise UnusableError("not a document", "images and texts are no lists of one length")
        items: list[Item] = []
        for picture, text in zip(pictures, texts, strict=True):
            if isinstance(text, str) and text.strip():
                items.append(text)
            elif (there := _picture(picture, index)) is not None:
                items.append(there)
        if not any(not isinstance(item, str) for item in items):
            raise UnusableError(
                "no picture of the document is there", f"{sum(each is not None for each in pictures)} named"
            )
        return Raw(name, tuple(items), _metadata(row), document=True)

    def _index_for(self, path: Path) -> AddressIndex | None:
        return None if self._place is None else AddressIndex(tars_for(self._place, path))


def _picture(value: Any, index: AddressIndex | None) -> Item | None:
    """Return the picture in a cell, or where it lies; None where there is none."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value or None
    return index.find(value) if isinstance(value, str) and index is not None else None


def _metadata(row: dict[str, Any]) -> dict[str, Any]:
    """Return the address of the page, which OBELICS keeps in JSON text."""
    try:
        content = json.loads(row.get(METADATA) or "{}")
    except (ValueError, TypeError, RecursionError):
        return {}
    url = content.get("url") if isinstance(content, dict) else None
    return {"url": plain(url)} if isinstance(url, str) else {}

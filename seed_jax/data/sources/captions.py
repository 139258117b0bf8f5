"""Captioned pictures in a table or a JSON list, such as those of CC3M.

Tables (`.tsv`, `.csv`) have the columns `caption, image` unless their first line or `--columns` says otherwise; JSON
lists hold `{"image": "a.jpg", "caption": "A dog."}`. `path`, `file_name` and `filepath` may stand for `image`; a
caption may be a list of captions; any other key is kept as metadata. Tasks: pretrain.image_text_pair, sft.qa.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from seed_jax.data.sources.listed import TABLES, Listed, Numbered, entry_of, first, list_entries, opened, rest, texts
from seed_jax.data.sources.units import Bad, InputFile, Raw, UnusableError

IMAGE_KEYS = ("image", "path", "file_name", "filepath")
CAPTION_KEYS = ("caption", "captions", "text")
DEFAULT_COLUMNS = ("caption", "image")  # of CC3M's own list


class CaptionsSource(Listed):
    """Read lists of captioned pictures; a work unit is a row or an entry."""

    kind = "captions"
    patterns = ("*.tsv", "*.csv", "*.json", "*.jsonl", "*.jsonl.gz", "*.tsv.gz", "*.csv.gz")
    what = "lists of captions"

    def __init__(
        self, paths: Sequence[str | Path], *, images: str | Path | None = None, columns: Sequence[str] | None = None
    ):
        super().__init__(paths, images=images)
        self.columns = tuple(columns) if columns else None
        self.options = {"columns": list(self.columns)} if self.columns else {}

    def entries(self, file: InputFile) -> Iterator[Numbered | Bad]:
        columns = self.columns
        if columns is None and not _has_header(file.path):
            columns = DEFAULT_COLUMNS
        return list_entries(file.path, columns=columns)

    def unit(self, name: str, entry: Any, file: InputFile) -> Raw:
        entry = entry_of(entry)
        image = first(entry, IMAGE_KEYS)
        if not isinstance(image, str):
            raise UnusableError("no picture named", f"expected one of {', '.join(IMAGE_KEYS)}")
        captions = texts(entry, CAPTION_KEYS, "caption")
        return Raw(name, (self.picture(image, file), *captions), rest(entry, CAPTION_KEYS))


def _has_header(path: Path) -> bool:
    """Say whether the first line of a table names columns that are known."""
    with opened(path) as file:
        names = file.readline(1 << 16).decode("utf-8-sig", "replace").strip()
    separators = "".join(TABLES.values())
    words = {word.strip('" ') for separator in separators for word in names.split(separator)}
    return bool(words & {*IMAGE_KEYS}) and bool(words & {*CAPTION_KEYS})

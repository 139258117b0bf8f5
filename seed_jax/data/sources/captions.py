"""Captioned images in a table or a JSON list, such as CC3M.

Tables (`.tsv`, `.csv`) have the columns `caption, image` unless their first line or `--columns` says otherwise; JSON
lists hold `{"image": "a.jpg", "caption": "A dog."}`. `path`, `file_name` and `filepath` are alternatives to `image`,
`captions`, `text` and `title` to `caption`, which may be a list of captions; any other key is kept as metadata. Tasks:
pretrain.image_text_pair, sft.qa.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from seed_jax.data.sources.json_stream import opened
from seed_jax.data.sources.listed import (
    TABLE_SEPARATORS,
    ListSource,
    NumberedEntry,
    as_object,
    first_value,
    list_entries,
    present_key,
    remaining_metadata,
    text_values,
)
from seed_jax.data.sources.samples import LOOSE_FILES_HINT, InputFile, RawSample, SkippedSample, SkipSampleError
from seed_jax.errors import UserError
from seed_jax.images import EXTENSIONS

IMAGE_KEYS = ("image", "path", "file_name", "filepath")
CAPTION_KEYS = ("caption", "captions", "text", "title")
DEFAULT_COLUMNS = ("caption", "image")  # of CC3M's own list


class CaptionsSource(ListSource):
    """Read lists of captioned images; one sample per row or entry."""

    kind = "captions"
    patterns = ("*.tsv", "*.csv", "*.json", "*.jsonl", "*.jsonl.gz", "*.tsv.gz", "*.csv.gz")
    what = "lists of captions"

    def __init__(
        self, paths: Sequence[str | Path], *, images: str | Path | None = None, columns: Sequence[str] | None = None
    ):
        super().__init__(paths, images=images)
        self.columns = tuple(columns) if columns else None
        self.options = {"columns": list(self.columns)} if self.columns else {}
        for file in self.files:
            if file.path.suffix == ".json" and any(file.path.with_suffix(end).is_file() for end in EXTENSIONS):
                raise UserError(LOOSE_FILES_HINT.format(folder=file.path.parent))

    def entries(self, file: InputFile) -> Iterator[NumberedEntry | SkippedSample]:
        columns = self.columns
        if columns is None and not _has_header(file.path):
            columns = DEFAULT_COLUMNS
        return list_entries(file.path, columns=columns)

    def sample(self, name: str, entry: Any, file: InputFile) -> RawSample:
        entry = as_object(entry)
        image = first_value(entry, IMAGE_KEYS)
        if not isinstance(image, str):
            raise SkipSampleError("no image name", f"expected one of {', '.join(IMAGE_KEYS)}")
        captions = text_values(entry, CAPTION_KEYS, "caption")
        meta = remaining_metadata(entry, present_key(entry, CAPTION_KEYS))
        return RawSample(name, (self.find_image(image, file), *captions), meta)


def _has_header(path: Path) -> bool:
    """Whether the first line of a table names known columns."""
    with opened(path) as file:
        line = file.readline(1 << 16).decode("utf-8-sig", "replace").strip()
    names = {name.strip('" ') for separator in TABLE_SEPARATORS.values() for name in line.split(separator)}
    return bool(names & {*IMAGE_KEYS}) and bool(names & {*CAPTION_KEYS})

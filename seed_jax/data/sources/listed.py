"""Base class of sources whose files are lists: JSON lines, a JSON array, or a table, one sample per entry.

A subclass says in `entries` where the entries are and in `sample` how an entry becomes a sample.
"""

import csv
import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from seed_jax.data.sources import json_stream
from seed_jax.data.sources.image_lookup import ImageLookup, inline_image
from seed_jax.data.sources.json_stream import DAMAGE, DamagedError, opened
from seed_jax.data.sources.samples import (
    FileSlice,
    InputFile,
    RawSample,
    SkippedSample,
    SkipSampleError,
    find_files,
    name_files,
    to_storable,
)
from seed_jax.errors import UserError
from seed_jax.files import parse_json

Entry = dict[str, Any]
NumberedEntry = tuple[int, Any]
"""Number of an entry from 1 (for lines the line number) and its content: the bytes of a line, or parsed data."""

TABLE_SEPARATORS = {".tsv": "\t", ".csv": ","}
_COMPRESSED = (".gz", ".zip")


class ListSource:
    """A source of lists.

    Args:
        paths: lists, and folders that contain lists.
        images: location of the images (`ImageLookup`); by default the folder of each list.
    """

    kind: str
    patterns: ClassVar[tuple[str, ...]] = ("*.jsonl", "*.json", "*.jsonl.gz", "*.jsonl.zip")
    what: ClassVar[str] = "lists"

    def __init__(self, paths: Sequence[str | Path], *, images: str | Path | None = None):
        self.files = name_files(self.find(paths))
        for file in self.files:
            _check_format(file.path)
        self.images = ImageLookup(images)
        self.options: dict[str, Any] = {}

    def find(self, paths: Sequence[str | Path]) -> list[Path]:
        """Return the list files."""
        return find_files(paths, self.patterns, self.what)

    def entries(self, file: InputFile) -> Iterator[NumberedEntry | SkippedSample]:
        """Yield the entries of a file; by default those of `list_entries`."""
        return list_entries(file.path)

    def sample(self, name: str, entry: Any, file: InputFile) -> RawSample:
        """Convert an entry to a sample; SkipSampleError if it is unusable."""
        raise NotImplementedError

    def count(self, file: InputFile) -> int:
        return sum(1 for _ in self._entries_and_damage(file))

    def read(self, file: InputFile, start: int, stop: int) -> Iterator[RawSample | SkippedSample]:
        for entry in itertools.islice(self._entries_and_damage(file), start, stop):
            yield entry if isinstance(entry, SkippedSample) else self._convert(file, *entry)

    def find_image(self, name: Any, file: InputFile, extensions: Sequence[str] = ("",)) -> Path | FileSlice | bytes:
        """Return the location of an image named in `file` (see `ImageLookup.find`), or an image in base64."""
        image = inline_image(name) if isinstance(name, str) else None
        return image if image is not None else self.images.find(name, file.path, extensions)

    def _convert(self, file: InputFile, number: int, content: Any) -> RawSample | SkippedSample:
        name = f"{file.name}:{number}"
        try:
            return self.sample(name, parse_line(content) if isinstance(content, bytes) else content, file)
        except SkipSampleError as error:
            return error.skipped(name)

    def _entries_and_damage(self, file: InputFile) -> Iterator[NumberedEntry | SkippedSample]:
        """Yield the entries; where the file is damaged one SkippedSample, so that the loss is counted."""
        try:
            yield from self.entries(file)
        except DAMAGE as error:
            yield SkippedSample(f"{file.name}:(damaged)", "damaged file", str(error))


def _check_format(path: Path) -> None:
    """Raise UserError for a file that is not text in UTF-8."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    if head.startswith(b"PAR1"):
        raise UserError(f"{path} is a parquet file: read it with --source parquet, naming its columns with --columns.")
    if path.suffix not in _COMPRESSED and (head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head):
        raise UserError(f"{path} is not UTF-8 text but perhaps UTF-16: convert it with `iconv -f UTF-16 -t UTF-8`.")


def list_entries(
    path: Path, key: str | None = None, columns: Sequence[str] | None = None
) -> Iterator[NumberedEntry | SkippedSample]:
    """Yield the entries of a list.

    Args:
        path: JSON lines, a JSON array, or a table, distinguished by extension and first character.
        key: key under which a JSON object holds the array.
        columns: column names of a table without a header line.
    """
    extension = Path(path.name.removesuffix(path.suffix)).suffix if path.suffix in _COMPRESSED else path.suffix
    if extension in TABLE_SEPARATORS:
        return table_rows(path, TABLE_SEPARATORS[extension], columns)
    if extension == ".json" and json_stream.first_character(path) == ("[" if key is None else "{"):
        return enumerate(json_stream.elements(path, key), 1)
    return json_stream.lines(path)


def index_entries(path: Path, key: str) -> Iterator[Entry]:
    """Yield the objects in the array under `key`, to which other entries refer.

    Raises:
        UserError: the file is damaged; skipping the rest would silently lose the entries that refer to it.
    """
    try:
        yield from (element for element in json_stream.elements(path, key) if isinstance(element, dict))
    except DAMAGE as error:
        raise UserError(f"{path} cannot be read to the end of {key!r} ({error}): download it again.") from error


def table_rows(path: Path, separator: str, columns: Sequence[str] | None) -> Iterator[NumberedEntry | SkippedSample]:
    """Yield the rows of a table as dicts; with `columns` given, the first line is a row like all others."""
    with opened(path) as file:
        first_line = file.readline(1 << 16)
    if separator == "," and b"\t" in first_line and b"," not in first_line:
        separator = "\t"  # as open_clip writes its .csv files
    with opened(path) as file:
        lines = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
        # Tab-separated caption lists have no quoting: a caption may begin with a quotation mark.
        quoting = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
        rows = csv.reader(lines, delimiter=separator, quoting=quoting)
        try:
            names = list(columns) if columns else next(rows, [])
            for number, row in enumerate(filter(None, rows), 1):
                if len(row) == len(names):
                    yield number, dict(zip(names, row, strict=True))
                else:
                    yield SkippedSample(
                        f"{path.name}:{number}", "wrong number of columns", f"{len(row)} of {len(names)}"
                    )
        except csv.Error as error:
            raise DamagedError(str(error)) from error


def parse_line(line: bytes) -> Any:
    """Return the content of a JSON line."""
    try:
        return parse_json(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise SkipSampleError("text is not UTF-8", str(error)) from error
    except ValueError as error:
        raise SkipSampleError("line is not JSON", str(error)) from error


def as_object(content: Any) -> Entry:
    """Return an entry that must be a JSON object."""
    if not isinstance(content, dict):
        raise SkipSampleError("entry is not a JSON object", f"a {type(content).__name__}")
    return content


def first_value(entry: Entry, keys: Sequence[str]) -> Any:
    """Return the value under the first of `keys` that is present and not null, or None."""
    return next((entry[key] for key in keys if entry.get(key) is not None), None)


def text_value(entry: Entry, keys: Sequence[str], what: str) -> str:
    """Return the text under the first of `keys` that is present; `what` completes the reason "no ..."."""
    value = first_value(entry, keys)
    if not isinstance(value, str):
        raise SkipSampleError(f"no {what}", f"expected text under one of {', '.join(keys)}")
    return value


def text_values(entry: Entry, keys: Sequence[str], what: str) -> list[str]:
    """Return the text or list of texts under the first of `keys` that is present, without blank ones among several."""
    value = first_value(entry, keys)
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not value or not all(isinstance(element, str) for element in value):
        raise SkipSampleError(f"no {what}", f"expected one of {', '.join(keys)}: text or a list of texts")
    return without_blanks(value)


def without_blanks(texts: list[str]) -> list[str]:
    """Return the texts that are not blank, or all of them if all are blank."""
    return [text for text in texts if text.strip()] or texts


def present_key(entry: Entry, keys: Sequence[str]) -> tuple[str, ...]:
    """Return the first of `keys` that is present and not null, as `first_value` uses it."""
    return next(((key,) for key in keys if entry.get(key) is not None), ())


def remaining_metadata(entry: Entry, used: Sequence[str]) -> dict[str, Any]:
    """Return the values under keys that are not `used`, in storable form."""
    return {to_storable(key): to_storable(value) for key, value in entry.items() if key not in used}

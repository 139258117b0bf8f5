"""What sources share whose files are lists: JSON lines, a JSON array, a table. A work unit is an entry of a list.

A source of that kind says in `entries` where the entries are and in `unit` what a sample is; all else stands here.
"""

import csv
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from seed_jax.data.sources import json_stream
from seed_jax.data.sources.json_stream import DAMAGE, DamagedError, opened
from seed_jax.data.sources.pictures_at import PicturesAt
from seed_jax.data.sources.units import Bad, InputFile, Item, Raw, UnusableError, found, named, plain
from seed_jax.errors import UserError

Entry = dict[str, Any]
Numbered = tuple[int, Any]
"""The number of an entry, from 1 (of a line: its line number), and its content: a line's bytes, or parsed."""

TABLES = {".tsv": "\t", ".csv": ","}
_PACKED = (".gz", ".zip")


class Listed:
    """A source of lists; `images` is where their pictures lie, by default beside each list."""

    kind: ClassVar[str]
    patterns: ClassVar[tuple[str, ...]] = ("*.jsonl", "*.json", "*.jsonl.gz", "*.jsonl.zip")
    what: ClassVar[str] = "lists"

    def __init__(self, paths: Sequence[str | Path], *, images: str | Path | None = None):
        self.files = named(self.find(paths))
        self.pictures = PicturesAt(images)
        self.options: dict[str, Any] = {}

    def find(self, paths: Sequence[str | Path]) -> list[Path]:
        return found(paths, self.patterns, self.what)

    def entries(self, file: InputFile) -> Iterator[Numbered | Bad]:
        """Yield the entries of a file; by default those of `list_entries`."""
        return list_entries(file.path)

    def unit(self, name: str, entry: Any, file: InputFile) -> Raw:
        """Return the sample of an entry; UnusableError where there is none."""
        raise NotImplementedError

    def count(self, file: InputFile) -> int:
        return sum(1 for _ in self._whole_or_bad(file))

    def read(self, file: InputFile, start: int, stop: int) -> Iterator[Raw | Bad]:
        for entry in itertools.islice(self._whole_or_bad(file), start, stop):
            yield entry if isinstance(entry, Bad) else self._unit(file, *entry)

    def _unit(self, file: InputFile, number: int, content: Any) -> Raw | Bad:
        name = f"{file.name}:{number}"
        try:
            return self.unit(name, parsed(content) if isinstance(content, bytes) else content, file)
        except UnusableError as error:
            return Bad(name, error.reason, error.detail)

    def _whole_or_bad(self, file: InputFile) -> Iterator[Numbered | Bad]:
        """Yield the entries, and where the file breaks one Bad, so that no loss goes uncounted."""
        try:
            yield from self.entries(file)
        except DAMAGE as error:
            yield Bad(f"{file.name}:(damaged)", "damaged file", str(error))

    def picture(self, name: Any, file: InputFile, extensions: Sequence[str] = ("",)) -> Item:
        return self.pictures.find(name, file.path, extensions)


def list_entries(path: Path, key: str | None = None, columns: Sequence[str] | None = None) -> Iterator[Numbered | Bad]:
    """Yield the entries of a list: JSON lines, a JSON array (or the one under `key`), or a table by its extension.

    Args:
        columns: names of a table's columns, where it has none of its own in its first line.
    """
    kind = Path(path.name.removesuffix(path.suffix)).suffix if path.suffix in _PACKED else path.suffix
    if kind in TABLES:
        return table(path, TABLES[kind], columns)
    if kind == ".json" and json_stream.first_character(path) == ("[" if key is None else "{"):
        return enumerate(json_stream.elements(path, key), 1)
    return json_stream.lines(path)


def index_entries(path: Path, key: str) -> Iterator[Entry]:
    """Yield the entries of an array that others refer to; UserError where it breaks off, since those would be lost."""
    try:
        yield from (each for each in json_stream.elements(path, key) if isinstance(each, dict))
    except DAMAGE as error:
        raise UserError(f"{path} cannot be read to the end of {key!r} ({error}): download it again.") from error


def table(path: Path, separator: str, columns: Sequence[str] | None) -> Iterator[Numbered | Bad]:
    """Yield the rows of a table as dicts; with `columns` given, the first line is a row like all others."""
    with opened(path) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
        # Tab-separated lists of captions have no quoting: a caption may begin with a quotation mark.
        quoting = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
        rows = csv.reader(text, delimiter=separator, quoting=quoting)
        try:
            names = list(columns) if columns else next(rows, None)
            for number, row in enumerate(filter(None, rows), 1):
                if len(row) == len(names):
                    yield number, dict(zip(names, row, strict=True))
                else:
                    yield Bad(f"{path.name}:{number}", "wrong number of columns", f"{len(row)} of {len(names)}")
        except csv.Error as error:
            raise DamagedError(str(error)) from error


def parsed(line: bytes) -> Any:
    """Return the content of a JSON line."""
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UnusableError("text is not UTF-8", str(error)) from error
    except (ValueError, RecursionError) as error:
        raise UnusableError("line is not JSON", str(error)) from error


def entry_of(content: Any) -> Entry:
    """Return an entry that must be an object with names."""
    if not isinstance(content, dict):
        raise UnusableError("entry is not a JSON object", f"a {type(content).__name__}")
    return content


def first(entry: Entry, keys: Sequence[str]) -> Any:
    """Return the value under the first of `keys` that is there and not null, else None."""
    return next((entry[key] for key in keys if entry.get(key) is not None), None)


def text(entry: Entry, keys: Sequence[str], what: str) -> str:
    """Return the text under the first of `keys` that is there; `what` names it in the reason, as in "no question"."""
    value = first(entry, keys)
    if not isinstance(value, str):
        raise UnusableError(f"no {what}", f"expected text under one of {', '.join(keys)}")
    return value


def texts(entry: Entry, keys: Sequence[str], what: str) -> list[str]:
    """Return the text or texts under the first of `keys` that is there."""
    value = first(entry, keys)
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value):
        raise UnusableError(f"no {what}", f"expected one of {', '.join(keys)}: text or a list of texts")
    return value


def rest(entry: Entry, used: Sequence[str]) -> dict[str, Any]:
    """Return what is not `used`, as metadata that can be stored."""
    return {plain(key): plain(value) for key, value in entry.items() if key not in used}

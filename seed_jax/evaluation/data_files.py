"""Finding and reading the official files of benchmarks, strictly: what is wrong is named by file and record."""

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from seed_jax.errors import UserError
from seed_jax.files import MAX_LIST_BYTES, check_regular, is_file, parse_json, read_text

_KINDS = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "nothing"}


def find(directory: Path, names: Sequence[str], given: Path | None, option: str) -> Path:
    """Return the file given by the user, or the only one that has an official name.

    Args:
        directory: searched with its subdirectories of one level.
        names: patterns of official names, the preferred ones first.
        given: what the user gave by `option`.
        option: name of the command-line option, for messages.

    Raises:
        UserError: no file, or several, have such a name.
    """
    if given is not None:
        if not given.is_file():
            raise UserError(f"{given} ({option}) does not exist: give an existing file.")
        return given
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory: give the directory of the dataset with --data.")
    for name in names:
        found = sorted({*directory.glob(name), *directory.glob(f"*/{name}")})
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(
                f"{directory} has {len(found)} files {name} ({found[0].name}, {found[1].name}, ...): choose one with"
                f" {option}."
            )
    raise UserError(f"{directory} has no {' or '.join(names)}: give the file with {option}.")


def read_json(path: Path) -> Any:
    """Read a JSON file, or the list of records of a .jsonl file.

    Raises:
        UserError: the file is missing, not UTF-8 or not JSON, or an object has a key twice.
    """
    try:
        text = read_text(path, MAX_LIST_BYTES).removeprefix("\ufeff")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give a JSON file.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {path} ({error}): give a JSON file in UTF-8.") from error
    try:
        if path.suffix == ".jsonl":
            # Not splitlines(): strings may hold other line separators, such as U+2028.
            return [parse_json(line, object_pairs_hook=_unique_keys) for line in text.split("\n") if line.strip()]
        return parse_json(text, object_pairs_hook=_unique_keys)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): repair the file.") from error


def read_table(path: Path, delimiter: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read a CSV or TSV file with a header.

    Raises:
        UserError: the file is not UTF-8 or a column is missing.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # MMBench holds images as base64
    try:
        check_regular(path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, restval="")
            rows, names = list(reader), list(reader.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table ({error}): repair the file.") from error
    missing = [column for column in columns if column not in names]
    if missing:
        raise UserError(
            f"{path} has no column {', '.join(missing)} but {', '.join(names)}: it is another file,"
            " or another edition of the dataset."
        )
    return rows


def records(content: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where each record of a list is, for messages, and the record."""
    if not isinstance(content, list):
        raise UserError(f"{where}: expected a list of records, found {kind(content)}.")
    for index, record in enumerate(content):
        if not isinstance(record, dict):
            raise UserError(f"{where}[{index}]: expected an object, found {kind(record)}.")
        yield f"{where}[{index}]", record


def text(record: dict[str, Any], key: str, where: str) -> str:
    """Return a text of a record."""
    value = record.get(key)
    if not isinstance(value, str):
        raise UserError(f"{where}: expected `{key}` as text, found {kind(value)}.")
    return value


def identifier(record: dict[str, Any], key: str, where: str) -> int | str:
    """Return an id of a record, a number or text."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"{where}: expected `{key}` as a number or text, found {kind(value)}.")
    return value


def existing(root: Path, candidates: Iterable[str]) -> Path:
    """Return the first candidate that exists under `root`, else the first one, which is reported when it is read."""
    paths = [root / candidate for candidate in candidates]
    return next((path for path in paths if is_file(path)), paths[0])


def kind(value: Any) -> str:
    """Name the type of a JSON value."""
    return _KINDS.get(type(value), "a number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice!r} occurs twice in one object")
    return record

"""What a source yields: one work unit at a time, as found, or why it cannot be used."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from seed_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Raw:
    """A sample as found: texts (str), encoded pictures (bytes) and picture files (Path), in reading order."""

    id: str
    items: tuple[str | bytes | Path, ...]
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Bad:
    """A sample that cannot be used; `reason` is one of few, for counting, `detail` is for the log."""

    id: str
    reason: str
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A file that a source reads; `name` does not depend on where the data set lies."""

    path: Path
    name: str


@runtime_checkable
class Source(Protocol):
    """A foreign format. Its work units are (file, index), in an order that never changes.

    Attributes:
        kind: the name on the command line and in records.
        files: what is read, in order.
    """

    kind: str
    files: tuple[InputFile, ...]

    def count(self, file: InputFile) -> int:
        """Return how many work units a file has, without reading its pictures."""
        ...

    def read(self, file: InputFile, start: int, stop: int) -> Iterator[Raw | Bad]:
        """Yield exactly the work units [start, stop) of a file, none ever left out, one in memory at a time."""
        ...


def named(paths: Sequence[Path]) -> tuple[InputFile, ...]:
    """Name files by their paths below the folder that they share."""
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UserError(f"{twice} is given twice: name every file once.")
    absolute = [path.absolute() for path in paths]
    shared = Path(os.path.commonpath([path.parent for path in absolute]))
    return tuple(
        InputFile(path, full.relative_to(shared).as_posix()) for path, full in zip(paths, absolute, strict=True)
    )


def text_problem(text: str) -> str | None:
    """Say why a text cannot be stored, or None: empty, broken Unicode, or control characters."""
    if not text.strip():
        return "empty text"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "text is not Unicode"
    if any((character < " " and character not in "\t\n\r") or character == "\x7f" for character in text):
        return "control characters in text"
    return None


def plain(value: Any) -> Any:
    """Return JSON data such that it can be stored: broken Unicode replaced, numbers beyond 64 bits as text."""
    if isinstance(value, dict):
        return {plain(key): plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    return str(value) if isinstance(value, int) and not -(2**63) <= value < 2**63 else value

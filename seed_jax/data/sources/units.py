"""What a source yields: one work unit at a time, as found, or why it cannot be used."""

import base64
import binascii
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from seed_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Slice:
    """A picture inside a larger file: `size` bytes from `offset`, perhaps written in base64."""

    path: Path
    offset: int
    size: int
    base64: bool = False

    def read_bytes(self) -> bytes:
        """Return the picture's bytes; OSError where they are not there any more, or not base64."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise OSError(f"{self.path} ends within a picture")
        try:
            return base64.b64decode(data, validate=True) if self.base64 else data
        except binascii.Error as error:
            raise OSError(f"a picture in {self.path} is not base64 ({error})") from error


@dataclasses.dataclass(frozen=True)
class Video:
    """A video file of which `frames` frames are used, each from the middle of an equal stretch."""

    path: Path
    frames: int


Item = str | bytes | Path | Slice | Video | np.ndarray
"""A text, a picture (its bytes, its file or a stretch of a file), a video, or codes made earlier: uint16 [32]."""


@dataclasses.dataclass(frozen=True, eq=False)
class Raw:
    """A sample as found: texts, pictures, videos and codes in reading order.

    Attributes:
        document: a picture that cannot be used is left out, as long as one remains, instead of the whole sample.
        similarities: of a document, how well each picture fits its text, in the order of the pictures.
    """

    id: str
    items: tuple[Item, ...]
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    document: bool = False
    similarities: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Bad:
    """A sample that cannot be used; `reason` is one of few, for counting, `detail` is for the log."""

    id: str
    reason: str
    detail: str = ""


class UnusableError(Exception):
    """What a reader raises where a sample cannot be used; it becomes a `Bad`."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


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
        options: settings of the reader that change what it yields, for the plan of a build.
    """

    kind: str
    files: tuple[InputFile, ...]
    options: dict[str, Any]

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


def found(paths: Sequence[str | Path], patterns: Sequence[str], what: str) -> list[Path]:
    """Return the files among `paths`, and for every folder those below it that match one of `patterns`, in order."""
    files = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path} does not exist: expected {what}.")
        inside = sorted({match for pattern in patterns for match in path.rglob(pattern)}) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"{path} has no {what}: expected files named {' or '.join(patterns)}.")
        files += inside
    return files


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

"""Streaming reader for large JSON files, JSON lines and their compressed forms, in bounded memory."""

import contextlib
import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from seed_jax.files import MAX_TEXT_BYTES

CHUNK = 1 << 20  # characters per read
# Characters of one value; nothing larger is an entry of a dataset, and parsed JSON takes up to twenty times its memory.
MAX_VALUE_LENGTH = MAX_TEXT_BYTES


class DamagedError(Exception):
    """The rest of a file cannot be read; what precedes it is intact."""


# What reading may raise in the middle of a file.
DAMAGE = (DamagedError, EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, RecursionError)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, decompressing `.gz`, and `.zip` with a single member."""
    with contextlib.ExitStack() as stack:
        file: Any = stack.enter_context(path.open("rb"))
        if path.suffix == ".gz":
            file = stack.enter_context(gzip.GzipFile(fileobj=file))
        elif path.suffix == ".zip":
            file = _unzipped(file, stack)
        yield file


def _unzipped(file: BinaryIO, stack: contextlib.ExitStack) -> Any:
    try:
        archive = stack.enter_context(zipfile.ZipFile(file))
        names = archive.namelist()
        if len(names) == 1:
            return stack.enter_context(archive.open(names[0]))
    # Encrypted, unknown compression, invalid offsets.
    except (RuntimeError, NotImplementedError, OSError, ValueError) as error:
        raise DamagedError(str(error)) from error
    raise DamagedError(f"the archive contains {len(names)} files, expected one")


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the non-blank lines with their line numbers, counted from 1."""
    with opened(path) as file:
        number = 0
        while line := file.readline(MAX_VALUE_LENGTH):
            number += 1
            if len(line) == MAX_VALUE_LENGTH and not line.endswith(b"\n"):
                raise DamagedError(f"line {number} is longer than {MAX_VALUE_LENGTH:,} bytes")
            if line.strip():
                yield number, line


def elements(path: Path, key: str | None = None) -> Iterator[Any]:
    """Yield the elements of the top-level array, or of the array under `key` of the top-level object."""
    with opened(path) as file:
        reader = _Reader(file)
        if reader.find(key, "["):
            yield from reader.elements()


def members(path: Path, key: str | None = None) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of the top-level object, or of the object under `key`."""
    with opened(path) as file:
        reader = _Reader(file)
        if reader.find(key, "{"):
            yield from reader.members()


def names(path: Path) -> Iterator[str]:
    """Yield the names in the top-level object lazily."""
    with opened(path) as file:
        reader = _Reader(file)
        for name in reader.names():
            yield name
            reader.skip()


def value(path: Path, key: str) -> Any:
    """Return the (small) value under `key` of the top-level object, or None; other values are skipped."""
    with opened(path) as file:
        reader = _Reader(file)
        if reader.peek() == "{":
            for name in reader.names():
                if name == key:
                    return reader.value()
                reader.skip()
    return None


def first_character(path: Path) -> str:
    """Return the first non-blank character of a file, which distinguishes an array from an object."""
    with opened(path) as file:
        return _Reader(file).peek()


class _Reader:
    """A position in JSON text of which only a window is in memory."""

    def __init__(self, file: BinaryIO):
        # Invalid UTF-8 becomes lone surrogates, which are detected where the text is used.
        self._file = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._position = 0

    def find(self, key: str | None, opening: str) -> bool:
        """Move to the top-level array or object, or to that under `key`; return False if there is none."""
        if key is None:
            return self._expect(opening)
        if not self._expect("{"):
            return False
        for name in self.names():
            if name == key:
                return self._expect(opening)
            self.skip()
        return False

    def _expect(self, opening: str) -> bool:
        if self.peek() != opening:
            raise DamagedError(f"found {self.peek() or 'nothing'!r}, expected {opening!r}")
        return True

    def elements(self) -> Iterator[Any]:
        yield from (self.value() for _ in self._iterate("]"))

    def members(self) -> Iterator[tuple[str, Any]]:
        for name in self.names():
            yield name, self.value()

    def names(self) -> Iterator[str]:
        """Yield the names in an object; the caller must read or skip the value after each."""
        for _ in self._iterate("}"):
            name = self.value()
            if not isinstance(name, str):
                raise DamagedError("a name in an object is not a string")
            self._take(":")
            yield name

    def skip(self) -> None:
        """Skip a value without keeping it in memory."""
        opening = self.peek()
        if opening == "[":
            for _ in self._iterate("]"):
                self.skip()
        elif opening == "{":
            for _ in self.names():
                self.skip()
        else:
            self.value()

    def value(self) -> Any:
        """Return the value at this position."""
        self.peek()
        while True:
            try:
                decoded, end = self._decoder.raw_decode(self._text, self._position)
                # A number at the end of the window may continue after it.
                if end < len(self._text) or not self._read_more():
                    self._position = end
                    return decoded
            except json.JSONDecodeError as error:
                truncated = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - 20
                if not truncated or not self._read_more():
                    raise DamagedError(f"not valid JSON: {error.msg}") from None
            except ValueError as error:
                raise DamagedError(f"a value cannot be parsed: {error}") from None

    def peek(self) -> str:
        """Return the next non-blank character, or an empty string at the end."""
        while True:
            while self._position < len(self._text) and self._text[self._position] in " \t\r\n":
                self._position += 1
            if self._position < len(self._text) or not self._read_more():
                return self._text[self._position : self._position + 1]

    def _iterate(self, closing: str) -> Iterator[None]:
        """Step from item to item of the array or object that begins here."""
        self.peek()
        self._position += 1
        if self.peek() != closing:
            yield
            while self.peek() == ",":
                self._position += 1
                yield
        self._take(closing)

    def _take(self, character: str) -> None:
        if self.peek() != character:
            raise DamagedError(f"found {self.peek() or 'the end'!r}, expected {character!r}")
        self._position += 1

    def _read_more(self) -> bool:
        """Extend the window and drop the text before the current position."""
        rest = self._text[self._position :]
        if len(rest) > MAX_VALUE_LENGTH:
            raise DamagedError(f"a value is longer than {MAX_VALUE_LENGTH:,} characters")
        # Double the window each time, so that the total work on a long value stays linear.
        chunk = self._file.read(max(CHUNK, len(rest)))
        self._text = rest + chunk
        self._position = 0
        return bool(chunk)

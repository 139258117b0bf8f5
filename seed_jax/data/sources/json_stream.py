"""Large JSON files value by value, JSON lines and compressed files, with a bounded part of them in memory."""

import contextlib
import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

CHUNK = 1 << 20  # characters read at once
LONGEST = 1 << 28  # characters of one value; more is no entry of a data set


class DamagedError(Exception):
    """The rest of a file cannot be read; what came before it can."""


# What reading on may raise in a file whose beginning was fine.
DAMAGE = (DamagedError, EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file, unpacking `.gz` and a `.zip` with one file in it on the way."""
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
    # A password, an unknown compression, offsets that lead nowhere.
    except (RuntimeError, NotImplementedError, OSError, ValueError) as error:
        raise DamagedError(str(error)) from error
    raise DamagedError(f"it holds {len(names)} files, expected one")


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank with their numbers, counted from 1."""
    with opened(path) as file:
        number = 0
        while line := file.readline(LONGEST):
            number += 1
            if len(line) == LONGEST and not line.endswith(b"\n"):
                raise DamagedError(f"line {number} is longer than {LONGEST:,} bytes")
            if line.strip():
                yield number, line


def elements(path: Path, key: str | None = None) -> Iterator[Any]:
    """Yield the elements of the array that the file holds, or that it holds under `key`."""
    with opened(path) as file:
        reader = _Reader(file)
        if reader.find(key, "["):
            yield from reader.elements()


def members(path: Path, key: str | None = None) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of the object that the file holds, or that it holds under `key`."""
    with opened(path) as file:
        reader = _Reader(file)
        if reader.find(key, "{"):
            yield from reader.members()


def names(path: Path) -> Iterator[str]:
    """Yield the names in the object that the file holds, as far as they are asked for."""
    with opened(path) as file:
        reader = _Reader(file)
        for name in reader.names():
            yield name
            reader.skip()


def value(path: Path, key: str) -> Any:
    """Return a small value under `key` of the object that the file holds, or None; large ones are walked over."""
    with opened(path) as file:
        reader = _Reader(file)
        if reader.peek() == "{":
            for name in reader.names():
                if name == key:
                    return reader.value()
                reader.skip()
    return None


def first_character(path: Path) -> str:
    """Return the first character of a file that is not blank, which tells an array from an object."""
    with opened(path) as file:
        return _Reader(file).peek()


class _Reader:
    """A place in JSON text of which only a window is in memory."""

    def __init__(self, file: BinaryIO):
        # Bytes that are no UTF-8 become lone surrogates, which are found where the text is used.
        self._file = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
        self._text, self._at, self._decoder = "", 0, json.JSONDecoder()

    def find(self, key: str | None, opening: str) -> bool:
        """Go to the array or object that the file is, or has under `key`; False where there is none."""
        if key is None:
            return self._is(opening)
        if not self._is("{"):
            return False
        for name in self.names():
            if name == key:
                return self._is(opening)
            self.skip()
        return False

    def _is(self, opening: str) -> bool:
        if self.peek() != opening:
            raise DamagedError(f"it has {self.peek() or 'nothing'!r} where {opening!r} was expected")
        return True

    def elements(self) -> Iterator[Any]:
        yield from (self.value() for _ in self._each("]"))

    def members(self) -> Iterator[tuple[str, Any]]:
        for name in self.names():
            yield name, self.value()

    def names(self) -> Iterator[str]:
        """Yield the names in an object; the caller takes or skips the value after each."""
        for _ in self._each("}"):
            name = self.value()
            if not isinstance(name, str):
                raise DamagedError("an object has a name that is not text")
            self._take(":")
            yield name

    def skip(self) -> None:
        """Walk over a value without holding it."""
        opening = self.peek()
        if opening == "[":
            for _ in self._each("]"):
                self.skip()
        elif opening == "{":
            for _ in self.names():
                self.skip()
        else:
            self.value()

    def value(self) -> Any:
        """Return the value at this place."""
        self.peek()
        while True:
            try:
                found, end = self._decoder.raw_decode(self._text, self._at)
                # A number that ends with the window may go on behind it.
                if end < len(self._text) or not self._more():
                    self._at = end
                    return found
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - 20
                if not cut or not self._more():
                    raise DamagedError(f"it is not JSON: {error.msg}") from None
            except (RecursionError, ValueError) as error:
                raise DamagedError(f"it holds a value that cannot be read: {error}") from None

    def peek(self) -> str:
        """Return the next character that is not blank, or nothing at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def _each(self, closing: str) -> Iterator[None]:
        """Step from item to item of the array or object that opens here."""
        self.peek()
        self._at += 1
        if self.peek() != closing:
            yield
            while self.peek() == ",":
                self._at += 1
                yield
        self._take(closing)

    def _take(self, character: str) -> None:
        if self.peek() != character:
            raise DamagedError(f"it has {self.peek() or 'its end'!r} where {character!r} was expected")
        self._at += 1

    def _more(self) -> bool:
        """Read on; what lies behind this place is forgotten."""
        rest = self._text[self._at :]
        if len(rest) > LONGEST:
            raise DamagedError(f"it holds a value of more than {LONGEST:,} characters")
        # Twice as much each time, so that a long value is not decoded again and again.
        fresh = self._file.read(max(CHUNK, len(rest)))
        self._text, self._at = rest + fresh, 0
        return bool(fresh)

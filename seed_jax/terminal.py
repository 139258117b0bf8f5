"""Text for terminals: control characters, and characters that the terminal's encoding lacks, are escaped.

What reaches a terminal may come from data, file names, models or servers. It is escaped at the edges, so that no caller
has to think of it: `escaped_stdout` for everything that is printed, `PrintableFormatter` for log messages and warnings,
`EscapedParser` for errors of the command line, `error_line` for the sentence that ends a command.
"""

import argparse
import contextlib
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from io import TextIOBase
from pathlib import Path
from typing import Any

_MAX_ERROR_LENGTH = 10_000  # characters
# C0 controls except tab and newline, DEL, C1 controls, bidirectional overrides and isolates, lone surrogates.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    r"""Escape what could control the terminal, for text that comes from data, file names or models.

        print(printable("red\x1b[31m"))  # red\x1b[31m, without changing the colour

    Tabs and newlines are kept.
    """
    return _UNSAFE.sub(_escape, str(text))


def _escape(match: re.Match[str]) -> str:
    # JSON that is printed stays the same JSON: in its strings only characters from U+007F on are not escaped already.
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x7F else f"\\u{code:04x}"


def error_line(program: str, error: object) -> str:
    """Return the line that reports an error, escaped and of limited length."""
    text = printable(error)
    if len(text) > _MAX_ERROR_LENGTH:
        text = f"{text[:_MAX_ERROR_LENGTH]}... ({len(text) - _MAX_ERROR_LENGTH:,} more characters)"
    return f"{program}: {text}"


class EscapedParser(argparse.ArgumentParser):
    """A parser whose error messages, which repeat arguments such as file names, are escaped, and paths not empty."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.register("type", Path, _path)

    def error(self, message: str) -> Any:
        """Print usage and message to stderr and exit with code 2."""
        super().error(printable(message))


def _path(text: str) -> Path:
    if not text.strip():  # such as an unset variable of a shell; `Path("")` would be the current directory
        raise argparse.ArgumentTypeError("an empty path: name a file or a directory")
    return Path(text)


class _EscapedStream:
    """A text stream that escapes what is written; all else is done by the stream that it wraps."""

    def __init__(self, stream: Any):
        self.unescaped = stream

    def write(self, text: str) -> int:
        self.unescaped.write(printable(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unescaped, name)


@contextlib.contextmanager
def escaped_stdout() -> Iterator[None]:
    """Escape everything that is printed within the block."""
    with contextlib.redirect_stdout(_EscapedStream(sys.stdout)):  # pyright: ignore[reportArgumentType]
        yield


def write_controls(text: str) -> None:
    """Write the program's own control sequences to the terminal, also within `escaped_stdout`."""
    stream = sys.stdout.unescaped if isinstance(sys.stdout, _EscapedStream) else sys.stdout
    stream.write(text)
    stream.flush()


class PrintableFormatter(logging.Formatter):
    """Format log messages with `printable`."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def configure_streams(*streams: TextIOBase) -> None:
    """Make stdout and stderr (or `streams`) escape characters that their encoding lacks instead of raising."""
    for stream in streams or (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # absent where a test or a notebook replaced the stream
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")

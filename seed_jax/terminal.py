"""Text for terminals: control characters, and characters that the terminal's encoding lacks, are escaped."""

import logging
import re
import sys
from io import TextIOBase

# C0 controls except tab and newline, DEL, C1 controls, bidirectional overrides and isolates, lone surrogates.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    r"""Escape what could control the terminal, for text that comes from data, file names or models.

        print(printable("red\x1b[31m"))  # red\x1b[31m, without changing the colour

    Tabs and newlines are kept.
    """
    return _UNSAFE.sub(_escape, str(text))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


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

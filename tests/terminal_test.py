import io
import logging

import pytest

from seed_jax.terminal import PrintableFormatter, configure_streams, printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two\tcells\nand a line, ü and 日本", "two\tcells\nand a line, ü and 日本"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("over\rwritten\x08", "over\\x0dwritten\\x08"),
        ("\x9b2J", "\\x9b2J"),  # the eight-bit form of ESC [
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("\ud800", "\\ud800"),
    ],
)
def test_control_characters_are_escaped(text, expected):
    assert printable(text) == expected


def test_log_messages_are_escaped():
    record = logging.LogRecord("x", logging.INFO, "f.py", 1, "read %s", ("a\x1b[2J.png",), None)
    assert PrintableFormatter("%(message)s").format(record) == "read a\\x1b[2J.png"


def test_characters_that_the_terminal_lacks_are_escaped():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="cp1252")
    configure_streams(stream)
    print("日本 →", file=stream, flush=True)
    assert raw.getvalue() == b"\\u65e5\\u672c \\u2192\n"

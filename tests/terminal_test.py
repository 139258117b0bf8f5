import io
import json
import logging
import sys
from pathlib import Path

import pytest

from seed_jax.terminal import (
    EscapedParser,
    PrintableFormatter,
    configure_streams,
    error_line,
    escaped_stdout,
    printable,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two\tcells\nand a line, ü and 日本", "two\tcells\nand a line, ü and 日本"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("over\rwritten\x08", "over\\x0dwritten\\x08"),
        ("\x9b2J\x7f", "\\u009b2J\\u007f"),  # the eight-bit form of ESC [
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


def test_what_is_printed_is_escaped_and_json_stays_the_same(capsys):
    record = {"text": "\x1b[31m\x9b2J\u202e\x7f ü 日本\n"}
    with escaped_stdout():
        print("a\x1b]0;title\x07", end="")
        print()
        print(json.dumps(record, ensure_ascii=False))
        assert not sys.stdout.isatty()
    plain, line = capsys.readouterr().out.splitlines()
    assert plain == "a\\x1b]0;title\\x07"
    assert printable(line) == line
    assert json.loads(line) == record


def test_errors_of_the_command_line_are_escaped(capsys):
    with pytest.raises(SystemExit):
        EscapedParser(prog="x").parse_args(["--\x1b[2J"])
    assert "--\\x1b[2J" in capsys.readouterr().err


def test_an_error_line_is_escaped_and_of_limited_length():
    assert error_line("seed-jax", "no \x1b.png") == "seed-jax: no \\x1b.png"
    assert len(error_line("seed-jax", "x" * 10**6)) < 11_000


def test_an_empty_path_is_refused_also_in_subcommands(capsys):
    parser = EscapedParser(prog="x")
    parser.add_argument("--model", type=Path)
    subcommand = parser.add_subparsers().add_parser("y")
    subcommand.add_argument("--out", type=Path)
    assert parser.parse_args(["--model", ".", "y", "--out", "o"]).out == Path("o")
    for arguments in (["--model", ""], ["y", "--out="]):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(arguments)
        assert "an empty path" in capsys.readouterr().err

import json
import os
from pathlib import Path

import pytest

from seed_jax import files
from seed_jax.errors import UserError


@pytest.fixture
def odd_paths(tmp_path):
    """What may be given instead of a file: a FIFO, which blocks whoever opens it, a device, a folder, a link to one."""
    os.mkfifo(tmp_path / "fifo.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "link.json").symlink_to("/dev/zero")
    return [tmp_path / "fifo.json", tmp_path / "link.json", tmp_path / "folder.json"]


def test_only_regular_files_are_opened(odd_paths):
    for path in odd_paths:
        for read in (files.read_bytes, files.read_text, files.read_json, files.check_regular):
            with pytest.raises(UserError, match=r"not a regular file|is a directory"):
                read(path)


def test_files_of_any_size_are_refused_before_they_are_read(tmp_path):
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(10**12)  # takes no space on the disk
    with pytest.raises(UserError, match="1,000,000,000,000 bytes"):
        files.read_json(tmp_path / "large.json")


def test_line_ends_are_unified_and_errors_stay_those_of_python(tmp_path):
    (tmp_path / "a").write_bytes(b"a\r\nb\n")
    assert files.read_text(tmp_path / "a") == "a\nb\n"
    assert files.read_bytes(tmp_path / "a") == b"a\r\nb\n"
    assert files.read_bytes(Path("/proc/self/stat"))  # a regular file that claims to be empty
    with pytest.raises(FileNotFoundError):
        files.read_bytes(tmp_path / "absent")
    (tmp_path / "a").write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError):
        files.read_text(tmp_path / "a")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[1", "", "9" * 5000])
def test_malformed_and_deep_json_is_one_kind_of_error(tmp_path, text):
    with pytest.raises(ValueError, match=r"."):
        files.parse_json(text)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match="not valid JSON"):
        files.read_json(tmp_path / "a.json")


def test_json_objects_are_read(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"a": [1]}))
    assert files.read_json(tmp_path / "a.json") == {"a": [1]}
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(UserError, match="holds a list, expected an object"):
        files.read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a/b.jpg", True), ("ä\u2028", True), ("a\0b", False), ("\ud800", False), ("\udcff/a", False)],
)
def test_what_can_name_a_file(text, expected):
    assert files.is_path(text) == expected

"""Recognise Git LFS pointers: small text files that a clone without `git lfs pull` holds in place of the weights."""

import dataclasses
import re
from pathlib import Path

from seed_jax.errors import UserError

_VERSION = b"version https://git-lfs.github.com/spec/"
_LARGEST = 1024  # the specification keeps pointers below this number of bytes


@dataclasses.dataclass(frozen=True)
class LfsPointer:
    """Fields of a pointer that describe the file it stands for; None where a field is missing or malformed."""

    sha256: str | None
    size: int | None


def lfs_pointer(path: str | Path) -> LfsPointer | None:
    """Parse a Git LFS pointer, or return None where the file is not a pointer or does not exist."""
    path = Path(path)
    if not path.is_file() or path.stat().st_size >= _LARGEST:
        return None
    return parse_pointer(path.read_bytes())


def parse_pointer(content: bytes) -> LfsPointer | None:
    """Parse the content of a pointer, or return None where it is not one."""
    if not content.startswith(_VERSION):
        return None
    text = content.decode("utf-8", "replace")
    sha256 = re.search(r"^oid sha256:([0-9a-f]{64})\r?$", text, re.MULTILINE)
    size = re.search(r"^size (\d{1,18})\r?$", text, re.MULTILINE)
    return LfsPointer(sha256[1] if sha256 else None, int(size[1]) if size else None)


def check_not_pointer(path: str | Path) -> None:
    """Raise UserError where `path` is a Git LFS pointer; readers of weights call this first."""
    if pointer := lfs_pointer(path):
        size = f" of {pointer.size:,} bytes" if pointer.size is not None else ""
        raise UserError(
            f"{path} is a Git LFS pointer: a text that stands for a file{size}; run `git lfs pull` in its repository, "
            "or download it with `seed-jax fetch`."
        )

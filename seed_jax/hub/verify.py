"""Verify a file against the manifest: size, SHA-256, and what commonly stands in its place."""

import dataclasses
import hashlib
import logging
from pathlib import Path

from seed_jax.hub.manifest import SIZE_TOLERANCE, SMALL, Artefact, File
from seed_jax.lfs import parse_pointer
from seed_jax.sizes import format_size

START = 1024  # bytes that `kind_of` looks at
_PAGE_STARTS = (b"<!doctype", b"<html", b"<head", b"<?xml")


class WrongContent(Exception):  # noqa: N818  (a finding; the caller makes the error message)
    """A file does not match the manifest; the message states what it is, as in "the file ..."."""


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a file must satisfy beyond its manifest entry.

    Attributes:
        size: in bytes, as the server stated it.
        sha256: as the server stated it, or as it was recorded on the first download.
        git_blob: SHA-1 of the content as a git object, as the server stated it.
        origin: who stated the SHA-256, for messages.
    """

    size: int | None = None
    sha256: str | None = None
    git_blob: str | None = None
    origin: str = ""


def check(path: Path, artefact: Artefact, file: File, expected: Expected) -> str:
    """Return the file's SHA-256 where everything that is known of it holds.

    Raises:
        WrongContent: something does not.
    """
    with path.open("rb") as content:
        kind = kind_of(content.read(START))
    if kind:
        raise WrongContent(f"is {kind}")
    size = path.stat().st_size
    check_size(size, file, path)
    if expected.size is not None and size != expected.size:
        raise WrongContent(f"has {size:,} bytes where {expected.size:,} are expected")
    with path.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    if what := artefact.known_wrong(sha256):
        raise WrongContent(f"is {what}")
    if file.sha256 and not sha256.startswith(file.sha256):
        raise WrongContent(f"has the SHA-256 {sha256[:16]}... where {file.sha256[:16]}... is expected")
    if expected.sha256 and sha256 != expected.sha256:
        raise WrongContent(f"has the SHA-256 {sha256[:16]}... where {expected.origin} {expected.sha256[:16]}...")
    if expected.git_blob and _git_blob(path) != expected.git_blob:
        raise WrongContent("does not have the content that the repository states for it")
    return sha256


def kind_of(start: bytes) -> str | None:
    """Return what the leading bytes of a file show it to be where that is no weights file, else None."""
    if pointer := parse_pointer(start):
        size = f" of {pointer.size:,} bytes" if pointer.size is not None else ""
        return f"a Git LFS pointer: a text that stands for a file{size}"
    if start.lstrip().lower().startswith(_PAGE_STARTS):
        return "an HTML or XML page (an error or login page of the server)"
    return None


def check_size(size: int, file: File, path: Path) -> None:
    """Raise WrongContent where a size is not the manifest's; warn where it differs from an approximate, small one."""
    if file.size is None or size == file.size:
        return
    if file.exact:
        half = " (a half-finished download)" if size < file.size else ""
        raise WrongContent(f"has {size:,} bytes where {file.size:,} are expected{half}")
    if abs(size - file.size) <= SIZE_TOLERANCE * file.size:
        return
    message = f"has {format_size(size)} where about {format_size(file.size)} are expected"
    if file.size >= SMALL:
        raise WrongContent(message + (" (a half-finished download)" if size < file.size else ""))
    logging.warning("%s %s: another version of the file.", path.name, message)


def _git_blob(path: Path) -> str:
    """Return the SHA-1 by which git names this content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

"""Atomic writes, new directories and locks: the one place where files are created, so that a kill loses nothing.

Paths may be local (`pathlib.Path`) or in a bucket (`etils.epath.Path`, such as `gs://...`); locks and directories that
appear at once exist for local paths only.
"""

import contextlib
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from seed_jax.errors import UserError

Directory = Path | epath.Path


def write_bytes(path: Directory, content: bytes) -> None:
    """Write a file atomically: a reader, or a process started after a crash, sees the old content or all of the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if isinstance(temporary, Path):
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        else:
            temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Directory, text: str) -> None:
    """Write a UTF-8 text file atomically; lone surrogates are escaped."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Directory, value: Any, *, indent: int = 2, sort_keys: bool = False) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=indent, sort_keys=sort_keys, ensure_ascii=False) + "\n")


def check_vacant(directory: Path) -> None:
    """Raise UserError unless `directory` is missing or empty; callers check before they start long work."""
    if directory.is_file() or (directory.exists() and any(directory.iterdir())):
        raise UserError(f"{directory} exists and is not empty: choose another --out or remove it.")


@contextlib.contextmanager
def new_directory(directory: str | Path) -> Iterator[Path]:
    """Yield a temporary directory that is renamed to `directory` when the block ends and deleted when it fails."""
    directory = Path(directory)
    check_vacant(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if directory.exists():
            directory.rmdir()
        temporary.rename(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def locked(path: Path, name: str, *, wait: bool = False, shared: bool = False) -> Iterator[None]:
    """Hold the lock file `path`; the operating system releases it when the process ends, however it ends.

    Args:
        path: the lock file; created if missing, and left in place.
        name: what the lock protects, for the error message.
        wait: block until the lock is free instead of raising.
        shared: take a shared lock, which excludes exclusive holders only.

    Raises:
        UserError: another process holds the lock; the message names it.
    """
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(f"{name} is being written by {holder}: wait for it or choose another --out.") from None
        file.truncate(0)
        file.write("several processes" if shared else f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield

"""Atomic writes, new directories, file locks, and reading of limited size: the one place for each.

A kill loses nothing that was written, and a FIFO, a device or a file of any size that is given instead of the expected
one becomes a UserError before it is opened. Paths may be local (`pathlib.Path`) or in a bucket (`etils.epath.Path`,
such as `gs://...`). Locks, new directories and `atomic_path` exist for local paths only.
"""

import contextlib
import errno
import fcntl
import io
import json
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from seed_jax.errors import UserError

AnyPath = Path | epath.Path
# Of a file that is read as a whole. Parsed JSON takes up to twenty times the memory of its text.
MAX_TEXT_BYTES = 32 * 2**20
# Of a list of records that is read as a whole and parsed record by record.
MAX_LIST_BYTES = 2**30
# What running the same command again does not mend.
_PERMANENT = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
)


def is_permanent(error: OSError) -> bool:
    """Whether an error of the operating system stays until the user does something, as a full disk does."""
    return error.errno in _PERMANENT


def describe(error: OSError) -> str:
    """Describe an error of the operating system and its place, without a full stop."""
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or error}"


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield the path of a temporary file that replaces `path` when the block ends and is deleted when it fails.

    For files that a library writes, or that are too large to hold in memory; `write_bytes` serves all others.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:  # a failed write names no file
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def write_bytes(path: AnyPath, content: bytes) -> None:
    """Write a file atomically: a reader, or a process started after a crash, sees the old content or all of the new."""
    if isinstance(path, Path):
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
        return
    temporary = path.with_name(_temporary(path).name)
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_text(path: AnyPath, text: str) -> None:
    """Write a UTF-8 text file atomically; lone surrogates are escaped."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: AnyPath, value: Any, *, indent: int = 2, sort_keys: bool = False) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=indent, sort_keys=sort_keys, ensure_ascii=False) + "\n")


def is_path(text: str) -> bool:
    """Whether a text from a file can name a file: it has no NUL and only whole characters, no half surrogate pairs."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def check_regular(path: Path, name: str | None = None) -> int:
    """Check that an existing path is a regular file, or a link to one, without opening it, and return its size.

    Opening a FIFO waits for a writer, and a device such as /dev/zero never ends.

    Args:
        path: a local path.
        name: name of the file in the message, by default its path.

    Raises:
        UserError: it is a directory, FIFO, socket or device.
        OSError: it does not exist or cannot be accessed.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"Cannot read {name or path}: it is a directory; give a file.")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"Cannot read {name or path}: it is not a regular file; copy its content into one.")
    return status.st_size


def is_file(path: Path) -> bool:
    """Whether a path is a file; False for names that no file can have, which `Path.is_file` raises for."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def check_size(size: int, max_bytes: int, name: object, remedy: str = "it is not the expected file") -> None:
    """Raise UserError if `name`, which is about to be read as a whole, has more than `max_bytes`."""
    if size > max_bytes:
        raise UserError(f"Refusing to read {name}: {size:,} bytes, more than {max_bytes:,}; {remedy}.")


def read_bytes(
    path: AnyPath,
    max_bytes: int = MAX_TEXT_BYTES,
    name: str | None = None,
    remedy: str = "it is not the expected file",
) -> bytes:
    """Return the content of a regular file.

    Args:
        path: the file.
        max_bytes: largest size that is read.
        name: name of the file in messages, by default its path.
        remedy: ends the message about a larger file.

    Raises:
        UserError: it is larger, or a directory, FIFO, socket or device.
        OSError: it does not exist or cannot be read.
    """
    if "://" in str(path):
        return path.read_bytes()
    local = Path(path)
    size = check_regular(local, name)
    check_size(size, max_bytes, name or path, remedy)
    with local.open("rb") as file:
        return file.read(size or max_bytes)  # files in /proc have the size 0


def read_text(path: AnyPath, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Return the content of a UTF-8 file with line ends unified; errors as in `read_bytes`, and UnicodeDecodeError."""
    return io.TextIOWrapper(io.BytesIO(read_bytes(path, max_bytes)), "utf-8").read()


def parse_json(text: str | bytes, **options: Any) -> Any:
    """Parse JSON like `json.loads`, with ValueError as the only error: also for text that is nested too deeply."""
    try:
        return json.loads(text, **options)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: AnyPath, remedy: str = "restore the file") -> dict[str, Any]:
    """Read a JSON object from a UTF-8 file.

    Args:
        remedy: ends the error message: what to do about a missing or damaged file.

    Raises:
        UserError: the file is missing, not regular, not JSON, or does not hold an object.
    """
    try:
        content = parse_json(read_text(path))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: {remedy}.") from None
    except ValueError as error:  # not UTF-8, or not JSON
        raise UserError(f"{path} is not valid JSON ({error}): {remedy}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, expected an object: {remedy}.")
    return content


def reserve_numbered(folder: Path, name: str, suffix: str) -> Path:
    """Create the next empty file `<name>_<number><suffix>`; two processes never receive the same one."""
    pattern = re.compile(rf"{re.escape(name)}_(\d{{1,9}}){re.escape(suffix)}")
    numbers = [int(match[1]) for path in folder.iterdir() if (match := pattern.fullmatch(path.name))]
    number = max(numbers, default=0) + 1
    while True:
        path = folder / f"{name}_{number}{suffix}"
        try:
            path.open("x").close()
        except FileExistsError:
            number += 1
        else:
            return path


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and its subfolders in sorted order.

    Hidden files and folders (`.thumbnails`, `._photo.jpg`) are skipped. Links are followed; every directory is visited
    once, so that links to a parent end.
    """
    visited: set[str] = set()
    for directory, subfolders, names in os.walk(folder, followlinks=True):
        location = os.path.realpath(directory)
        if location in visited:
            subfolders.clear()
            continue
        visited.add(location)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(directory, name) for name in sorted(names) if not name.startswith("."))


def check_vacant(directory: Path) -> None:
    """Raise UserError unless `directory` is missing or empty; callers check before they start long work."""
    if directory.is_file() or (directory.exists() and any(directory.iterdir())):
        raise UserError(f"{directory} exists and is not empty: choose another --out or remove it.")


@contextlib.contextmanager
def new_directory(directory: str | Path) -> Iterator[Path]:
    """Yield a temporary directory that is renamed to `directory` when the block ends and deleted when it fails.

    Raises:
        UserError: `directory` exists and is not empty.
    """
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
            raise UserError(f"{name} is being written by {holder}: wait for it or choose another place.") from None
        file.truncate(0)
        file.write("several processes" if shared else f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _temporary(path: AnyPath) -> Path:
    # Random, because hosts that share a directory may have equal process ids: in containers each one's is 1.
    return Path(path.parent) / f".{path.name}.{secrets.token_hex(4)}.tmp"

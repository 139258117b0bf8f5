"""A lock on a directory, for as long as a process lives."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from seed_jax.errors import UserError


@contextlib.contextmanager
def locked(path: Path, what: str, *, wait: bool = False, shared: bool = False) -> Iterator[None]:
    """Hold the lock file `path`, or raise a UserError that says who does; the system frees it when a process is killed.

    Args:
        what: names what is locked, for the message.
        wait: wait for whoever holds it, instead.
        shared: let others share it, but nobody hold it alone.
    """
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(f"{what} is being written by {holder}: wait for it or choose another --out.") from None
        file.truncate(0)
        file.write("several processes" if shared else f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield

"""The directory of a run: its lock, its resolved config and earlier ones, its program, its model directory.

    run.json            resolved config of the run; run_<n>.json are those of earlier starts that differed
    model/              model directory without parameters, which come from the newest checkpoint
    checkpoints/        see `seed_jax.checkpoint.store`
    metrics.jsonl       metrics by step; tensorboard/ has the same
    step.hlo.txt        the compiled step

It may be in a bucket (`gs://...`), where there are no file locks: an object that is renewed every minute replaces them.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from seed_jax.checkpoint import model_dir
from seed_jax.errors import TemporaryError, UserError
from seed_jax.files import AnyPath, read_json, write_json, write_text
from seed_jax.train.config import TrainConfig
from seed_jax.train.config.schema import to_dict
from seed_jax.train.stage import Stage

RENEW_SECONDS = 60.0
STALE_SECONDS = 3 * RENEW_SECONDS
RUN = "run.json"
HLO = "step.hlo.txt"


def resolve(workdir: epath.PathLike) -> AnyPath:
    """Return an absolute local path or a path in a bucket.

    Raises:
        UserError: the path has an unsupported scheme, or is a file.
    """
    text = str(workdir)
    if "://" in text and not text.startswith("gs://"):
        raise UserError(f"--workdir {text} is neither a local directory nor a bucket such as gs://bucket/run.")
    directory = epath.Path(text) if "://" in text else Path(text).expanduser().absolute()
    if isinstance(directory, Path) and directory.exists() and not directory.is_dir():
        raise UserError(f"--workdir {directory} is a file: name a directory.")
    return directory


def resolve_local(workdir: epath.PathLike, what: str) -> Path:
    """Return an absolute local path for `what`, which cannot run in a bucket.

    Raises:
        UserError: the path is in a bucket, has an unsupported scheme, or is a file.
    """
    directory = resolve(workdir)
    if not isinstance(directory, Path):
        raise UserError(f"--workdir {workdir} is in a bucket: {what} needs a local directory.")
    return directory


def demo_directory(workdir: AnyPath, name: str) -> Path:
    """Return the directory `name` of a local workdir, where `data.demo` makes its data.

    Raises:
        UserError: the workdir is in a bucket.
    """
    if not isinstance(workdir, Path):
        raise UserError(f"data.demo makes its data below a local --workdir, not in {workdir}.")
    return workdir / name


@contextlib.contextmanager
def locked(workdir: AnyPath) -> Iterator[None]:
    """Create the workdir and lock it for this run; the lock ends with the process.

    Raises:
        TemporaryError: another run uses the workdir, such as one that is still saving after SIGTERM.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    lock = _file_lock(workdir) if isinstance(workdir, Path) else _renewed_lock(workdir)
    with lock:
        yield


@contextlib.contextmanager
def _file_lock(workdir: Path) -> Iterator[None]:
    # One lock per host, where several share the directory.
    with (workdir / f".lock-{jax.process_index()}").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TemporaryError(
                f"--workdir {workdir} is in use by another run: stop it or choose another directory."
            ) from None
        yield


@contextlib.contextmanager
def _renewed_lock(workdir: epath.Path) -> Iterator[None]:
    path = workdir / f"lock-{jax.process_index()}"
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    _wait_until_stale(path, workdir)

    def write() -> None:
        path.write_text(f"{holder} at {time.time()}")

    closed = threading.Event()

    def renew() -> None:
        while not closed.wait(RENEW_SECONDS):
            try:
                write()
            except Exception as error:  # of the network; the next renewal may succeed before the lock is stale
                logging.warning("The lock %s could not be renewed (%s).", path, error)

    write()
    thread = threading.Thread(target=renew, name="workdir lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        closed.set()
        thread.join()
        path.unlink(missing_ok=True)


def _wait_until_stale(path: epath.Path, workdir: epath.Path) -> None:
    """Take over the lock of a run that was killed: of this host at once, of another once it is not renewed."""
    text = path.read_text() if path.exists() else ""
    holder, _, _ = text.rpartition(" at ")
    if not holder or _is_dead_process(holder):
        return
    deadline = time.time() + STALE_SECONDS - _age(text)
    if deadline > time.time():
        logging.warning(
            "%s is locked by %s; waiting up to %.0f s to see whether that run is alive.",
            workdir,
            holder,
            deadline - time.time(),
        )
    while time.time() < deadline:
        time.sleep(min(5.0, max(0.01, deadline - time.time())))
        renewed = path.read_text() if path.exists() else ""
        if not renewed:
            return
        if renewed != text:
            raise TemporaryError(
                f"--workdir {workdir} is in use by {holder}: stop that run or choose another directory."
            )


def _age(text: str) -> float:
    try:
        return max(0.0, time.time() - float(text.rpartition(" at ")[2]))
    except ValueError:
        return STALE_SECONDS


def _is_dead_process(holder: str) -> bool:
    """Whether the lock's holder was a process of this host that no longer exists."""
    process, _, host = holder.partition(" on ")
    if host != socket.gethostname() or not process.removeprefix("process ").isdigit():
        return False
    try:
        os.kill(int(process.removeprefix("process ")), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return int(process.removeprefix("process ")) == os.getpid()


def check_shared(workdir: AnyPath) -> None:
    """Raise UserError unless all hosts see the same workdir: otherwise no checkpoint would ever be complete."""
    if jax.process_count() == 1:
        return
    token = int(multihost_utils.broadcast_one_to_all(np.int32(secrets.randbelow(2**31))))
    path = workdir / f".shared-{token}"
    if jax.process_index() == 0:
        path.write_text(str(token))
    multihost_utils.sync_global_devices("seed_jax workdir written")
    sees = np.asarray(multihost_utils.process_allgather(np.int32(path.exists())))
    multihost_utils.sync_global_devices("seed_jax workdir checked")
    if jax.process_index() == 0:
        path.unlink(missing_ok=True)
    blind = [str(host) for host, seen in enumerate(sees.reshape(-1)) if not seen]
    if blind:
        raise UserError(
            f"What host 0 writes to --workdir {workdir} is not visible on host {', '.join(blind)}: use a bucket "
            "(gs://...) or a directory that all hosts share."
        )


def last_config(workdir: AnyPath) -> dict | None:
    """Return the resolved config that the workdir was last run with, or None where there is none.

    Raises:
        UserError: `run.json` is damaged.
    """
    path = workdir / RUN
    if not path.exists():
        return None
    return read_json(path, "restore it, or remove it to resume without a comparison")


def write_run(workdir: AnyPath, config: TrainConfig, stage: Stage) -> None:
    """Write `run.json`, keeping one that differs, and the model directory without parameters."""
    if jax.process_index() != 0:
        return
    values = to_dict(config)
    previous = last_config(workdir)
    if previous is not None and previous != values:
        number = 1 + len(list(workdir.glob("run_*.json")))
        write_json(workdir / f"run_{number:03d}.json", previous)
    write_json(workdir / RUN, values)
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary) / "model"
        values = {**stage.model_config(), **stage.references()}
        provenance = {"stage": config.stage}
        model_dir.save(made, stage.kind, values, None, files=stage.model_files(), provenance=provenance)
        target = workdir / "model"
        if isinstance(target, Path):
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(made, target)
        else:
            target.mkdir(parents=True, exist_ok=True)
            for path in made.iterdir():
                (target / path.name).write_bytes(path.read_bytes())


def write_hlo(workdir: AnyPath, compiled: Any) -> None:
    """Keep the compiled step, to compare runs and to look up what a trace shows."""
    if jax.process_index() == 0:
        write_text(workdir / HLO, compiled.as_text())

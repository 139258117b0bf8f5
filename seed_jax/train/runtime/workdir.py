"""The folder of a run: one run at a time, its resolved config, its program, its model directory without parameters.

It may lie in a bucket (`gs://...`), where there are no file locks: a file that is renewed every minute stands in.
"""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
from etils import epath

from seed_jax.checkpoint import model_dir
from seed_jax.errors import UserError
from seed_jax.files import Directory, write_text
from seed_jax.train.stage import Stage

RENEW_SECONDS = 60.0
HLO = "step.hlo.txt"


def place(workdir: epath.PathLike) -> Directory:
    """Return the folder: an absolute local path, or a place in a bucket."""
    if "://" in str(workdir):
        return epath.Path(workdir)
    return Path(workdir).absolute()


@contextlib.contextmanager
def locked(workdir: Directory) -> Iterator[None]:
    """Hold the workdir for this run; the lock goes with the process, however it ends."""
    workdir.mkdir(parents=True, exist_ok=True)
    hold = _file_locked if isinstance(workdir, Path) else _marked
    with hold(workdir):
        yield


@contextlib.contextmanager
def _file_locked(workdir: Path) -> Iterator[None]:
    # One lock a host, where several share the folder.
    with (workdir / f".lock-{jax.process_index()}").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--workdir {workdir} is in use by another run: stop it or choose another folder."
            ) from None
        yield


@contextlib.contextmanager
def _marked(workdir: epath.Path) -> Iterator[None]:
    mark, closed = workdir / f"lock-{jax.process_index()}", threading.Event()
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    if mark.exists():
        other, _, renewed = mark.read_text().rpartition(" at ")
        age = time.time() - float(renewed)
        if age < 3 * RENEW_SECONDS and other != holder:
            raise UserError(
                f"--workdir {workdir} is in use by {other}, {age:.0f} s ago: stop it, choose another folder, or wait "
                f"{3 * RENEW_SECONDS - age:.0f} s if it was killed."
            )

    def write() -> None:
        mark.write_text(f"{holder} at {time.time()}")

    def renew() -> None:
        while not closed.wait(RENEW_SECONDS):
            write()

    write()
    renewing = threading.Thread(target=renew, name="workdir lock", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        closed.set()
        renewing.join()
        mark.unlink(missing_ok=True)


def prepare(workdir: Directory, config: ml_collections.ConfigDict, stage: Stage) -> None:
    """Write `run.json` (this run's settings, with what was left to the accelerator) and `model/`."""
    if jax.process_index() != 0:
        return
    write_text(workdir / "run.json", json.dumps(json.loads(config.to_json_best_effort()), indent=2) + "\n")
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary) / "model"
        model_dir.save(
            made, stage.kind, stage.model_config, None, files=stage.files, provenance={"stage": config.stage}
        )
        target = workdir / "model"
        if isinstance(workdir, Path):
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(made, target)
        else:
            target.mkdir(parents=True, exist_ok=True)
            for path in made.iterdir():
                (target / path.name).write_bytes(path.read_bytes())


def write_hlo(workdir: Directory, compiled: Any) -> None:
    """Keep the compiled step's program, to compare runs and to look for what a trace shows."""
    if jax.process_index() == 0:
        write_text(workdir / HLO, compiled.as_text())

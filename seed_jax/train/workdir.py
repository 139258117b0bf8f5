"""The folder of a run: one run at a time, its resolved config, its model directory without parameters."""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_collections

from seed_jax.checkpoint import model_dir
from seed_jax.errors import UserError
from seed_jax.train.stages import Stage


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Hold the workdir for this run; the lock goes with the process, however it ends."""
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / f".lock-{jax.process_index()}").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--workdir {workdir} is in use by another run: stop it or choose another folder."
            ) from None
        yield


def prepare(workdir: Path, config: ml_collections.ConfigDict, stage: Stage) -> None:
    """Write `config.json` (this run's settings) and `model/` (what its checkpoints are)."""
    if jax.process_index() != 0:
        return
    model_dir.write_json(workdir / "run.json", json.loads(config.to_json_best_effort()))
    shutil.rmtree(workdir / "model", ignore_errors=True)
    model_dir.save(
        workdir / "model", stage.kind, stage.model_config, None, files=stage.files, provenance={"stage": config.stage}
    )

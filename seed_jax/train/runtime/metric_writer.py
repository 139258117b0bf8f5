"""Where numbers go: JSON lines, TensorBoard files, and the log.

Has the methods of `clu.metric_writers`, which cannot be used because it needs TensorFlow at import.
"""

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
from etils import epath
from tensorboardX import SummaryWriter

from seed_jax.errors import UserError


class MetricWriter:
    """Write scalars of process 0 to `metrics.jsonl` and to TensorBoard files in `workdir`, and to Weights & Biases.

    Args:
        first_step: rows of later steps are dropped: they will be written again.
        wandb: the project; "" sends nothing.
        described: the run's config, for Weights & Biases.
    """

    def __init__(
        self,
        workdir: Path | epath.Path,
        *,
        first_step: int = 0,
        wandb: str = "",
        described: ml_collections.ConfigDict | None = None,
    ):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        path = workdir / "metrics.jsonl"
        self._lines = _File(path, first_step) if isinstance(workdir, Path) else _Object(path, first_step)
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step or None)
        self._wandb = _start_wandb(workdir, wandb, described) if wandb else None

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write one row; numbers that are not finite are null in the JSON file."""
        if not self._active:
            return
        row = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self._lines.append(json.dumps({"step": step, **row}) + "\n")
        if self._wandb:
            self._wandb.log(dict(scalars), step=step)
        for name, value in scalars.items():
            self._board.add_scalar(name.replace("@", "_"), value, step)  # TensorBoard's names have no "@"

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        if self._active:
            for name, text in texts.items():
                self._board.add_text(name, text, step)
                logging.info("%s: %s", name, text)

    def flush(self) -> None:
        if self._active:
            self._board.flush()

    def close(self) -> None:
        if self._active:
            self._board.close()
            self._lines.close()
            if self._wandb:
                self._wandb.finish()


class _File:
    """Lines of a local file."""

    def __init__(self, path: Path, first_step: int):
        if path.exists():
            temporary = path.with_suffix(".tmp")
            temporary.write_text(_until(path.read_text(encoding="utf-8"), first_step), encoding="utf-8")
            temporary.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def append(self, line: str) -> None:
        self._file.write(line)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _Object:
    """Lines of an object in a bucket, which cannot be appended to: it is written anew, at most every ten seconds."""

    def __init__(self, path: epath.Path, first_step: int):
        self._path, self._written = path, 0.0
        self._text = _until(path.read_text(), first_step) if path.exists() else ""

    def append(self, line: str) -> None:
        self._text += line
        if time.monotonic() - self._written > 10:
            self.close()

    def close(self) -> None:
        self._path.write_text(self._text)
        self._written = time.monotonic()


def _until(text: str, first_step: int) -> str:
    """Leave out rows that a killed run wrote after its last checkpoint: they will be written again."""
    return "".join(line + "\n" for line in text.splitlines() if _step_of(line) <= first_step)


def _start_wandb(workdir: Path | epath.Path, project: str, described: ml_collections.ConfigDict | None) -> Any:
    try:
        import wandb
    except ImportError:
        raise UserError("wandb.project is set but wandb is not installed: pip install 'seed-jax[wandb]'.") from None
    # The workdir names the run, so that a restart goes on with it.
    name = str(workdir).rstrip("/").replace("://", "-").replace("/", "-")[-64:].strip("-")
    values = json.loads(described.to_json_best_effort()) if described is not None else {}
    return wandb.init(project=project, id=name, resume="allow", config=values)


def _step_of(line: str) -> int | float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf  # a line cut off by the kill

"""Where numbers go: JSON lines, TensorBoard files, and the log.

Has the methods of `clu.metric_writers`, which cannot be used because it needs TensorFlow at import.
"""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path

import jax
from tensorboardX import SummaryWriter


class MetricWriter:
    """Write scalars of process 0 to `metrics.jsonl` and to TensorBoard files in `workdir`."""

    def __init__(self, workdir: Path, *, first_step: int = 0):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self._path = workdir / "metrics.jsonl"
        _drop_later_steps(self._path, first_step)
        self._lines = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step or None)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write one row; numbers that are not finite are null in the JSON file."""
        if not self._active:
            return
        row = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self._lines.write(json.dumps({"step": step, **row}) + "\n")
        self._lines.flush()
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


def _drop_later_steps(path: Path, first_step: int) -> None:
    """Remove rows that a killed run wrote after its last checkpoint: they will be written again."""
    if not path.exists():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= first_step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    temporary.replace(path)


def _step_of(line: str) -> int | float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf  # a line cut off by the kill

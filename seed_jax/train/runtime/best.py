"""Which evaluation was the best so far: its checkpoint is kept, and without improvement the run ends early.

best.json   the metric, every evaluation of it, and the step of the best
"""

import json
import logging
from collections.abc import Collection, Mapping
from typing import Any

import jax

from seed_jax.checkpoint.model_dir import BEST
from seed_jax.errors import UserError
from seed_jax.files import AnyPath, read_json, write_json
from seed_jax.train.config import TrainConfig


class BestTracker:
    """Follows the metric that `checkpoint.keep_best` names.

    Args:
        config: the run's configuration.
        workdir: directory of the run.
        step: that the run resumes from; later evaluations are forgotten, because they are repeated.
    """

    def __init__(self, config: TrainConfig, workdir: AnyPath, step: int):
        self._metric, self._mode = config.checkpoint.keep_best, config.checkpoint.mode
        self._patience = config.evaluate.patience
        self._path = workdir / BEST
        self._history = [tuple(entry) for entry in self._read().get("history", []) if entry[0] <= step]

    def _read(self) -> dict[str, Any]:
        if not self._metric or not self._path.exists():
            return {}
        stored = read_json(self._path, "delete it to forget which checkpoint is the best")
        if stored.get("metric") != self._metric or stored.get("mode") != self._mode:
            logging.warning(
                "%s follows %s (%s), and the config now %s (%s): the best starts anew.",
                self._path, stored.get("metric"), stored.get("mode"), self._metric, self._mode,
            )  # fmt: skip
            return {}
        return stored

    @property
    def best_step(self) -> int | None:
        """The step of the best evaluation; of equal ones the first."""
        if not self._history:
            return None
        step, _ = (min if self._mode == "min" else max)(self._history, key=lambda entry: entry[1])
        return int(step)

    @property
    def has_run_out(self) -> bool:
        """Whether the last `evaluate.patience` evaluations brought no improvement."""
        if not self._patience or not self._history:
            return False
        steps = [step for step, _ in self._history]
        return len(steps) - 1 - steps.index(self.best_step) >= self._patience

    def check(self, evaluators: Collection[str]) -> None:
        """Raise UserError if none of the evaluators can measure the metric."""
        if self._metric and self._metric.split("/")[0] not in evaluators:
            raise UserError(
                f"checkpoint.keep_best is {self._metric!r}, expected a metric of what is evaluated"
                f" ({', '.join(evaluators) or 'nothing'}): set evaluate.data or evaluate.tasks, or name another metric."
            )

    def update(self, step: int, metrics: Mapping[str, float], expected: bool) -> None:
        """Add the evaluation of a step, if the metric is among its metrics.

        Args:
            step: of the evaluation.
            metrics: all metrics of the step's evaluations.
            expected: whether every evaluator ran, so that the metric must be there.

        Raises:
            UserError: there is no such metric, or it is not a number.
        """
        if not self._metric:
            return
        if self._metric not in metrics:
            if expected:
                raise UserError(
                    f"checkpoint.keep_best is {self._metric!r}, which no evaluation measures: expected one of"
                    f" {', '.join(metrics) or 'none (nothing is evaluated)'}."
                )
            return
        value = float(metrics[self._metric])
        if value != value:
            logging.warning("%s is not a number at step %d: it does not count.", self._metric, step)
            return
        if self._history and self._history[-1][0] == step:
            self._history.pop()
        self._history.append((step, value))

    def write(self) -> None:
        """Write `best.json`, after the checkpoint that it names."""
        if not self._metric or jax.process_index():
            return
        content = {
            "metric": self._metric,
            "mode": self._mode,
            "step": self.best_step,
            "history": [list(entry) for entry in self._history],
        }
        if not self._path.exists() or json.loads(self._path.read_text()) != content:
            write_json(self._path, content)

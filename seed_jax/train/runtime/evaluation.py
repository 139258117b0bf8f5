"""Run the stage's evaluators while training."""

import logging

from seed_jax.train.runtime.best import BestTracker
from seed_jax.train.runtime.hooks import Hook, StepResult
from seed_jax.train.runtime.progress import Progress
from seed_jax.train.stage import Evaluator
from seed_jax.train.state import merge


class Evaluation(Hook):
    """Run evaluators every so many steps and after the last, and write their metrics as `<name>/<metric>`.

    Args:
        evaluators: the measurements.
        progress: where metrics and samples are written.
        best: follows the metric that decides which checkpoint is kept.
    """

    def __init__(self, evaluators: tuple[Evaluator, ...], progress: Progress, best: BestTracker):
        self._evaluators = evaluators
        self._progress = progress
        self._best = best

    def after_step(self, result: StepResult) -> None:
        due = [one for one in self._evaluators if result.is_last or result.step % one.every_steps == 0]
        found: dict[str, float] = {}
        for evaluator in due:
            with self._progress.evaluating():
                metrics = evaluator.run(merge(result.state.trained, result.frozen))
            named = {f"{evaluator.name}/{name}": value for name, value in metrics.items()}
            self._progress.write(result.step, named)
            self._progress.write_samples(result.step, evaluator.name, evaluator.samples())
            logging.info("step %d  %s", result.step, "  ".join(f"{name} {value:.4f}" for name, value in named.items()))
            found |= named
        if due or result.is_last:
            self._best.update(result.step, found, expected=len(due) == len(self._evaluators))

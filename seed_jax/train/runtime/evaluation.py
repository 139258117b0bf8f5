"""Run the stage's evaluators while training."""

import logging

from seed_jax.train.runtime.hooks import Hook, StepResult
from seed_jax.train.runtime.progress import Progress
from seed_jax.train.stage import Evaluator
from seed_jax.train.state import merge


class Evaluation(Hook):
    """Run evaluators every so many steps and after the last, and write their metrics as `<name>/<metric>`."""

    def __init__(self, evaluators: tuple[Evaluator, ...], progress: Progress):
        self._evaluators = evaluators
        self._progress = progress

    def after_step(self, result: StepResult) -> None:
        for evaluator in self._evaluators:
            if result.step % evaluator.every_steps and not result.is_last:
                continue
            with self._progress.evaluating():
                metrics = evaluator.run(merge(result.state.trained, result.frozen))
            named = {f"{evaluator.name}/{name}": value for name, value in metrics.items()}
            self._progress.write(result.step, named)
            logging.info("step %d  %s", result.step, "  ".join(f"{name} {value:.4f}" for name, value in named.items()))

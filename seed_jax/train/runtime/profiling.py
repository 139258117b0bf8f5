"""Trace some steps for XProf or Perfetto."""

import logging

import jax

from seed_jax.files import AnyPath
from seed_jax.train.runtime.hooks import Hook, StepResult

DIRECTORY = "profile"


class Profiler(Hook):
    """Trace the steps of a range into `workdir/profile`."""

    def __init__(self, steps: range, workdir: AnyPath):
        self._steps = steps
        self._directory = str(workdir / DIRECTORY)
        self._is_running = False

    def before_step(self, step: int) -> None:
        if self._steps and step == self._steps.start:
            jax.profiler.start_trace(self._directory)
            self._is_running = True

    def after_step(self, result: StepResult) -> None:
        if self._is_running and result.step >= self._steps.stop - 1:
            jax.block_until_ready(result.state.step)
            self.close()

    def close(self) -> None:
        """Write the trace if one is running."""
        if self._is_running:
            jax.profiler.stop_trace()
            self._is_running = False
            logging.info("Wrote a trace of steps %d to %d to %s.", self._steps[0], self._steps[-1], self._directory)

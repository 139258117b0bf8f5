"""Write a trace of some steps, for XProf or Perfetto."""

import logging
import re

import jax
from etils import epath

from seed_jax.errors import UserError

FOLDER = "profile"


def parse(text: str) -> range:
    """Return the steps that "10-12" or "10" names; "" names none."""
    if not text:
        return range(0)
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", str(text))
    if not found or int(found[2] or found[1]) < int(found[1]) or int(found[1]) < 1:
        raise UserError(f"profile.steps is {text!r}, expected steps such as 10-12, or '' for none.")
    return range(int(found[1]), int(found[2] or found[1]) + 1)


class Profiler:
    """Trace the steps of a range into `workdir/profile`."""

    def __init__(self, steps: range, workdir: epath.PathLike):
        self._steps, self._directory, self._running = steps, str(epath.Path(workdir) / FOLDER), False

    def before(self, step: int) -> None:
        if self._steps and step == self._steps.start:
            jax.profiler.start_trace(self._directory)
            self._running = True

    def after(self, step: int, result: object) -> None:
        """End the trace with its last step, once that has run."""
        if self._running and step >= self._steps.stop - 1:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            logging.info(
                "A trace of steps %d to %d is in %s.", self._steps.start, self._steps.stop - 1, self._directory
            )

"""Leave in good order when the machine is taken away."""

import signal

import jax
from jax.experimental import multihost_utils

# sysexits.h EX_TEMPFAIL: the run was saved and should be started again with the same command.
EXIT_PREEMPTED = 75


class Preemption:
    """Notice SIGTERM. On several hosts all agree on the step after which they stop.

    Attributes:
        asked: whether SIGTERM came; with several hosts only the step tells.
    """

    def __init__(self):
        self.asked = False
        self._several = jax.process_count() > 1
        # With several hosts jax.distributed has installed a notifier of its own, which must not be replaced.
        if not self._several:
            self._previous = signal.signal(signal.SIGTERM, self._note)

    def _note(self, signum, frame) -> None:
        del signum, frame
        self.asked = True

    def reached(self, step: int) -> bool:
        """Whether to save and stop after `step`."""
        return multihost_utils.reached_preemption_sync_point(step) if self._several else self.asked

    def close(self) -> None:
        if not self._several:
            signal.signal(signal.SIGTERM, self._previous)

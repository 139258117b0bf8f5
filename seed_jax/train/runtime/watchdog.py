"""Notice a step that never ends, and a host that is gone; end this process then, so that a launcher can restart it.

A collective waits for all its devices for ever. Nothing inside the program can tell, so threads beside it do.
"""

import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time

import jax
from jax.experimental import multihost_utils

from seed_jax import distributed

# A launcher starts the run again; any code but 0, 2 and 75 tells it to.
EXIT_STUCK = 76
_BEAT = "seed_jax/beat/"


class Watchdog:
    """End the process when no step has ended for `seconds`; 0 never does."""

    def __init__(self, seconds: float):
        self._seconds, self._step, self._last = seconds, 0, time.monotonic()
        self._closed = threading.Event()
        if seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, step: int) -> None:
        """Note that the run still moves, now after `step`."""
        self._step, self._last = step, time.monotonic()

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(self._seconds / 4, 10)):
            idle = time.monotonic() - self._last
            if idle > self._seconds:
                _end(f"Nothing has moved for {idle:.0f} s after step {self._step}: the next step hangs.", stacks=True)


class Hosts:
    """Tell all hosts that this one lives, and end this one when another no longer does.

    Args:
        seconds: without a sign of life after which a host counts as lost; 0 never does.
    """

    def __init__(self, seconds: float):
        self._client = distributed.client() if seconds and jax.process_count() > 1 else None
        self._seconds, self._step, self._closed = seconds, 0, threading.Event()
        self._names: dict[str, str] = {}
        if self._client:
            # JAX aborts at once when its coordinator is gone, before any thread of ours is asked.
            logging.info(
                "This is host %d of %d. Host 0 (%s) coordinates them: should it die, JAX itself ends this process with "
                "code 134 and speaks of the leader task.",
                *(jax.process_index(), jax.process_count(), distributed.coordinator()),
            )
            self._say("starting")
            threading.Thread(target=self._watch, name="hosts", daemon=True).start()

    def beat(self, step: int) -> None:
        self._step = step

    def failed(self) -> None:
        """Wait, after an error of a collective, for the verdict which host it was; then end."""
        if self._client:
            logging.error("A collective failed after step %d; looking which host is gone.", self._step, exc_info=True)
            time.sleep(2 * self._seconds)
            _end(f"No host is gone, but a collective failed after step {self._step}.")

    def close(self) -> None:
        self._closed.set()
        if self._client:
            self._say("done")

    def _say(self, word: str) -> None:
        value = f"{word} {self._step} {socket.gethostname()}"
        self._client.key_value_set(f"{_BEAT}{jax.process_index()}", value, allow_overwrite=True)

    def _watch(self) -> None:
        seen: dict[str, tuple[str, float]] = {}
        beats = 0
        while not self._closed.wait(self._seconds / 5):
            beats += 1
            try:
                self._say(str(beats))
                found = dict(self._client.key_value_dir_get(_BEAT))
            except Exception as error:  # whatever the service's client raises when its process is gone
                if self._closed.is_set():
                    return
                reason = str(error).splitlines()[0]
                _end(f"Host 0 is gone, which coordinates the others ({self._names.get('0', 'unknown')}): {reason}")
            now = time.monotonic()
            for key, value in found.items():
                self._look(key.removeprefix(_BEAT), value, seen, now)

    def _look(self, host: str, value: str, seen: dict[str, tuple[str, float]], now: float) -> None:
        word, step, name = value.split(" ", 2)
        self._names[host] = name
        if host not in seen or seen[host][0] != value:
            seen[host] = (value, now)
        elif word != "done" and now - seen[host][1] > self._seconds:
            _end(f"Host {host} ({name}) is gone: no sign of life for {now - seen[host][1]:.0f} s after step {step}.")


def _end(message: str, *, stacks: bool = False) -> None:
    logging.critical("%s This process ends with code %d; start the run again to continue.", message, EXIT_STUCK)
    if stacks:
        faulthandler.dump_traceback(sys.stderr)
    sys.stderr.flush()
    os._exit(EXIT_STUCK)  # an ordinary exit would wait for the others


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

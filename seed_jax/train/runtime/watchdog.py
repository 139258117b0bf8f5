"""Detect steps that hang, hosts that are gone and preemptions, and end the process with an exit code for the launcher.

A collective waits for all its devices forever. Nothing inside the program can detect that, hence the threads here.
"""

import contextlib
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils

from seed_jax import distributed
from seed_jax.errors import TemporaryError
from seed_jax.train.runtime.hooks import Hook, StepResult

# sysexits.h EX_TEMPFAIL: the run was saved; start the same command again.
EXIT_PREEMPTED = 75
# The run hangs or lost a host; start it again. Launchers restart on every exit code but 0 and 2.
EXIT_STUCK = TemporaryError.exit_code
_HEARTBEAT = "seed_jax/heartbeat/"


class Watchdog(Hook):
    """End the process if no step finishes within `seconds`; 0 never does."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._step = 0
        self._beat_at = time.monotonic()
        self._closed = threading.Event()
        if seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def after_step(self, result: StepResult) -> None:
        self.beat(result.step)

    def beat(self, step: int) -> None:
        """Note that the run makes progress, now after `step`."""
        self._step = step
        self._beat_at = time.monotonic()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(self._seconds / 4, 10)):
            idle = time.monotonic() - self._beat_at
            if idle > self._seconds:
                exit_stuck(
                    f"No progress for {idle:.0f} s after step {self._step}: the next step hangs.", with_stacks=True
                )


class HostMonitor(Hook):
    """Send heartbeats to all hosts, and end the process when the heartbeats of another host stop.

    Args:
        seconds: without a heartbeat after which a host counts as lost; 0 never does.
    """

    def __init__(self, seconds: float):
        self._client: Any = distributed.coordination_client() if seconds and jax.process_count() > 1 else None
        self._seconds = seconds
        self._step = 0
        self._closed = threading.Event()
        self._host_names: dict[str, str] = {}
        if self._client:
            # When the coordinator dies, JAX aborts the other processes before any thread of ours runs.
            logging.info(
                "This is host %d of %d. Host 0 (%s) coordinates them: if it dies, JAX itself aborts this process with "
                "code 134 and a message about the leader task.",
                jax.process_index(),
                jax.process_count(),
                distributed.coordinator_address(),
            )
            self._send("starting")
            threading.Thread(target=self._watch, name="host monitor", daemon=True).start()

    def after_step(self, result: StepResult) -> None:
        self._step = result.step

    def collective_failed(self) -> None:
        """Wait, after the error of a collective, until it is known which host is gone; then end the process."""
        if self._client:
            logging.error(
                "A collective failed after step %d; waiting to learn which host is gone.", self._step, exc_info=True
            )
            time.sleep(2 * self._seconds)
            exit_stuck(f"All hosts are alive, but a collective failed after step {self._step}.")

    def close(self) -> None:
        """Stop monitoring, and tell the other hosts that this one is done."""
        self._closed.set()
        if self._client:
            with contextlib.suppress(Exception):  # whatever the client raises when the coordinator's process is gone
                self._send("done")

    def _send(self, beat: str) -> None:
        value = f"{beat} {self._step} {socket.gethostname()}"
        self._client.key_value_set(f"{_HEARTBEAT}{jax.process_index()}", value, allow_overwrite=True)

    def _watch(self) -> None:
        last_seen: dict[str, tuple[str, float]] = {}
        count = 0
        while not self._closed.wait(self._seconds / 5):
            count += 1
            try:
                self._send(str(count))
                beats = dict(self._client.key_value_dir_get(_HEARTBEAT))
            except Exception as error:  # whatever the client raises when the coordinator's process is gone
                if self._closed.is_set():
                    return
                reason = str(error).splitlines()[0]
                exit_stuck(
                    f"Host 0, which coordinates the others, is gone ({self._host_names.get('0', 'unknown')}): {reason}"
                )
            now = time.monotonic()
            for key, value in beats.items():
                self._check(key.removeprefix(_HEARTBEAT), value, last_seen, now)

    def _check(self, host: str, value: str, last_seen: dict[str, tuple[str, float]], now: float) -> None:
        beat, step, name = value.split(" ", 2)
        self._host_names[host] = name
        if host not in last_seen or last_seen[host][0] != value:
            last_seen[host] = (value, now)
        elif beat != "done" and now - last_seen[host][1] > self._seconds:
            silence = now - last_seen[host][1]
            exit_stuck(f"Host {host} ({name}) is gone: no heartbeat for {silence:.0f} s after step {step}.")


def exit_stuck(message: str, *, with_stacks: bool = False) -> NoReturn:
    """Log `message` and end this process at once, without waiting for the other hosts."""
    logging.critical("%s This process exits with code %d; start the run again to resume.", message, EXIT_STUCK)
    if with_stacks:
        faulthandler.dump_traceback(sys.stderr)
    sys.stderr.flush()
    os._exit(EXIT_STUCK)  # an ordinary exit would wait for the other hosts


class Preemption:
    """Detect SIGTERM. On several hosts all agree on the step after which they stop.

    Until `saving_from_now_on` is called there is nothing to save, and the process exits at once, even during a
    compilation.

    Attributes:
        is_requested: whether SIGTERM was received; on several hosts only `is_reached` tells.
    """

    def __init__(self):
        self.is_requested = False
        self._is_starting = True
        self._is_multihost = jax.process_count() > 1
        # On several hosts jax.distributed has installed a notifier of its own, which must not be replaced.
        if not self._is_multihost:
            self._receiver, sender = socket.socketpair()
            sender.setblocking(False)
            self._sender = sender
            # A Python signal handler runs only between bytecodes, long after a signal that comes while XLA compiles.
            # The interpreter's own handler writes the signal's number to this socket at once, for the thread to read.
            self._previous_fd = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
            self._previous = signal.signal(signal.SIGTERM, self._handle)
            self._thread = threading.Thread(target=self._watch, name="preemption", daemon=True)
            self._thread.start()

    def _handle(self, signum, frame) -> None:
        del signum, frame
        self.is_requested = True

    def _watch(self) -> None:
        while numbers := self._receiver.recv(64):  # empty once `close` has closed the sender
            if signal.SIGTERM not in numbers:
                continue
            if self._is_starting:
                sys.stderr.write("SIGTERM: nothing new to save yet; run the same command again to resume.\n")
                sys.stderr.flush()
                os._exit(EXIT_PREEMPTED)
            sys.stderr.write("SIGTERM: saving after the current step.\n")
            sys.stderr.flush()

    def saving_from_now_on(self) -> None:
        """Note that steps are taken, whose results are saved before the process exits."""
        self._is_starting = False

    def is_reached(self, step: int) -> bool:
        """Whether to save and stop after `step`."""
        return multihost_utils.reached_preemption_sync_point(step) if self._is_multihost else self.is_requested

    def close(self) -> None:
        """Restore the previous signal handler."""
        if not self._is_multihost:
            signal.signal(signal.SIGTERM, self._previous)
            signal.set_wakeup_fd(self._previous_fd)
            self._sender.close()
            self._thread.join()
            self._receiver.close()

"""Threads that end a process which cannot end itself."""

import subprocess
import sys
import time

import pytest

from seed_jax.train.runtime import watchdog
from seed_jax.train.runtime.hooks import StepResult
from seed_jax.train.runtime.watchdog import EXIT_STUCK, HostMonitor
from seed_jax.train.state import TrainState

HANGING = """
import logging, time
from seed_jax.train.runtime.watchdog import Watchdog
dog = Watchdog(1.0)
for step in range(1, 4):
    time.sleep(0.4)
    dog.beat(step)
def a_step_that_hangs():
    time.sleep(60)
a_step_that_hangs()
"""


def test_a_step_that_hangs_is_reported_and_ended():
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_STUCK
    assert "after step 3" in done.stderr
    assert "a_step_that_hangs" in done.stderr  # where it hangs
    assert time.monotonic() - began < 40


class Service:
    """What the hosts of a run share, with one host that fell silent."""

    def __init__(self):
        self.values = {"seed_jax/heartbeat/1": "7 12 node-b", "seed_jax/heartbeat/2": "done 20 node-c"}

    def key_value_set(self, key, value, allow_overwrite):
        assert allow_overwrite
        self.values[key] = value

    def key_value_dir_get(self, prefix):
        return list(self.values.items())


@pytest.fixture
def ended(monkeypatch):
    messages = []

    def end(message, **kwargs):
        messages.append(message)
        raise SystemExit

    monkeypatch.setattr(watchdog, "exit_stuck", end)
    monkeypatch.setattr("jax.process_count", lambda: 3)
    monkeypatch.setattr("threading.excepthook", lambda args: None)
    return messages


def wait_for(messages):
    deadline = time.monotonic() + 20
    while not messages:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_silent_host_is_named_and_one_that_is_done_is_not(monkeypatch, ended):
    monkeypatch.setattr("seed_jax.distributed.coordination_client", Service)
    hosts = HostMonitor(0.3)
    hosts.after_step(StepResult(15, TrainState(15, {}, ()), {}, {}, is_last=False, is_stopping=False))
    wait_for(ended)
    assert ended[0].startswith("Host 1 (node-b) is gone")
    assert "after step 12" in ended[0]
    hosts.close()


def test_the_coordinator_going_away_is_told_apart(monkeypatch, ended):
    class Dead(Service):
        def key_value_dir_get(self, prefix):
            raise RuntimeError("UNAVAILABLE: failed to connect")

    monkeypatch.setattr("seed_jax.distributed.coordination_client", Dead)
    hosts = HostMonitor(0.3)
    wait_for(ended)
    assert "Host 0" in ended[0]
    assert "is gone" in ended[0]
    hosts.close()

"""A run of several real processes on this machine, joined as hosts are, of which one can be killed."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support import xla_flags

ROOT = Path(__file__).parents[2]
DEVICES = 8  # of all processes together
LOST_SECONDS = 5.0


class Cluster:
    """Processes of one run; process n writes its output to `<workdir>_logs/<n>`.

    A `{}` in the workdir is the number of the process.
    """

    def __init__(self, workdir: Path, count: int, overrides: Sequence[str]):
        self.workdir, self.count = workdir, count
        self.logs = workdir.parent / f"{workdir.name}_logs"
        self.logs.mkdir(exist_ok=True)
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        self.processes = [self._start(number, port, overrides) for number in range(count)]

    def _start(self, number: int, port: int, overrides: Sequence[str]) -> subprocess.Popen:
        joined = {
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(self.count),
            "JAX_PROCESS_ID": str(number),
        }
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
            "XLA_FLAGS": xla_flags.flags(DEVICES // self.count),
            **(joined if self.count > 1 else {}),
        }
        command = [
            sys.executable,
            "-m",
            "seed_jax.main",
            f"--workdir={str(self.workdir).replace('{}', str(number))}",
            *overrides,
        ]
        command.append(f"--config.watchdog.lost_seconds={LOST_SECONDS}")
        log = (self.logs / str(number)).open("w")
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def log(self, number: int) -> str:
        """Return what a process has printed."""
        return (self.logs / str(number)).read_text()

    def wait_for_step(self, step: int, limit: float = 240.0) -> None:
        deadline = time.monotonic() + limit
        while (rows := losses(self.workdir)) is None or max(rows, default=0) < step:
            ended = [process.poll() for process in self.processes]
            assert ended == [None] * self.count, f"ended with {ended}: {self.log(0)[-2000:]}"
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def kill(self, number: int) -> None:
        self.processes[number].send_signal(signal.SIGKILL)

    def wait(self, limit: float = 240.0) -> list[int]:
        """Return all exit codes."""
        deadline = time.monotonic() + limit
        return [process.wait(max(1.0, deadline - time.monotonic())) for process in self.processes]

    def stop(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()


def names_process(log: str, number: int) -> bool:
    """Return whether a process's log names the process that is gone; process 0, the coordinator, is JAX's leader."""
    if number == 0:
        return "leader task was preempted" in log or "Host 0 is gone" in log
    return f"Host {number} (" in log and ") is gone" in log


def losses(workdir: Path) -> dict[int, float] | None:
    """Return the loss of each reported step; None while a line is being written."""
    path = workdir / "metrics.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    except json.JSONDecodeError:
        return None
    return {row["step"]: row["loss"] for row in rows if "loss" in row}

"""Run a command and learn how much memory it took."""

import dataclasses
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Run:
    """What a process took: the most memory that it held at once, and the time."""

    peak: int  # bytes, as the kernel counts resident pages, those of mapped files included
    seconds: float

    def line(self, name: str, limit: float | None = None) -> str:
        """Describe it in a line of a table."""
        bound = "" if limit is None else f"  limit {limit / GIB:5.2f} GiB{'' if self.peak <= limit else '  EXCEEDED'}"
        return f"{name:<28} peak {self.peak / GIB:5.2f} GiB  {self.seconds:6.1f} s{bound}"


def seed_jax(*arguments: str) -> Run:
    """Run a console command on the CPU."""
    return measure([sys.executable, "-m", "seed_jax.cli", *map(str, arguments)])


def measure(command: list[str]) -> Run:
    """Run a command whose output is not wanted; stop where it fails.

    The kernel counts what the parent holds as the child's until the child's own program starts: keep the parent small.
    """
    begin = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return Run(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), time.perf_counter() - begin)


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)

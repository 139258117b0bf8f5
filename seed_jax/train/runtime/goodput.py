"""Account for the wall-clock time of a run over all its restarts."""

import contextlib
import json
import time
from collections.abc import Iterator

import jax
from etils import epath

from seed_jax.files import AnyPath, write_text

FILE = "goodput.json"
KINDS = ("productive", "compile", "data_wait", "checkpoint", "evaluate", "startup", "recomputed", "downtime")


class Goodput:
    """Sum up seconds by kind and keep the sums in the workdir.

    `productive` are steps that count; `recomputed` are steps that a restart repeated; `downtime` is between the last
    write of a run and its next start; `startup` is everything before the first step except compilation.

    Args:
        workdir: directory of the run, whose `goodput.json` is continued.
        first_step: step of the checkpoint that the run resumes from; 0 for none.
    """

    def __init__(self, workdir: AnyPath, *, first_step: int):
        self._path = workdir / FILE
        self._active = jax.process_index() == 0
        self.seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self.current: dict[str, float] = {}  # since this start
        self._productive_at: dict[int, float] = {0: 0.0}
        stored = _read(epath.Path(self._path)) if self._active else None
        if stored:
            self.seconds |= {kind: seconds for kind, seconds in stored["seconds"].items() if kind in KINDS}
            self._productive_at |= stored["productive_at"]
            counted = self._productive_at.get(first_step, self.seconds["productive"] if first_step else 0.0)
            self.add("downtime", max(0.0, time.time() - stored["time"]))
            self.add("recomputed", self.seconds["productive"] - counted)
            self.seconds["productive"] = counted
            self._productive_at = {step: s for step, s in self._productive_at.items() if step <= first_step}

    def add(self, kind: str, seconds: float) -> None:
        """Add seconds to a kind."""
        self.seconds[kind] += seconds
        self.current[kind] = self.current.get(kind, 0.0) + seconds

    @contextlib.contextmanager
    def timing(self, kind: str) -> Iterator[None]:
        """Add the duration of a block to a kind."""
        start = time.perf_counter()
        yield
        self.add(kind, time.perf_counter() - start)

    def saved(self, step: int) -> None:
        """Note that a run that is killed from now on resumes from `step`."""
        self._productive_at[step] = self.seconds["productive"]
        self._productive_at = dict(sorted(self._productive_at.items())[-20:])  # as many as may still be restored

    def share(self) -> float:
        """Return the productive share of all time since the first start."""
        return self.seconds["productive"] / max(1e-9, sum(self.seconds.values()))

    def write(self) -> None:
        """Write the sums to the workdir."""
        if self._active:
            values = {"seconds": self.seconds, "productive_at": self._productive_at, "time": time.time()}
            write_text(self._path, json.dumps(values))


def _read(path: epath.Path) -> dict | None:
    """Return the stored sums, or None where the file is missing or damaged: nothing but the sums depends on it."""
    try:
        stored = json.loads(path.read_bytes())
        return {
            "seconds": {kind: float(seconds) for kind, seconds in stored["seconds"].items()},
            "productive_at": {int(step): float(seconds) for step, seconds in stored["productive_at"].items()},
            "time": float(stored["time"]),
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None

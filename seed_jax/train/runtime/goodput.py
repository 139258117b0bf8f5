"""Where the seconds of a run went, over all its restarts."""

import contextlib
import json
import time
from collections.abc import Iterator

import jax
from etils import epath

FILE = "goodput.json"
KINDS = ("productive", "compile", "data_wait", "checkpoint", "evaluate", "start", "lost", "away")


class Goodput:
    """Add up seconds by kind and keep them in the workdir.

    `productive` are steps that count; `lost` steps that a restart did again; `away` is between a run's last sign of
    life and its next start; `start` everything before the first step except compiling.
    """

    def __init__(self, workdir: epath.PathLike, *, first_step: int):
        """Go on from what the workdir holds, for a run that begins after `first_step`."""
        self._path, self._active = epath.Path(workdir) / FILE, jax.process_index() == 0
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self.latest: dict[str, float] = {}  # of this start alone
        self._at: dict[int, float] = {0: 0.0}
        stored = _read(self._path) if self._active else None
        if stored:
            self.seconds |= stored["seconds"]
            self._at |= {int(step): seconds for step, seconds in stored["productive_at"].items()}
            counted = self._at.get(first_step, self.seconds["productive"] if first_step else 0.0)
            self.add("away", max(0.0, time.time() - stored["time"]))
            self.add("lost", self.seconds["productive"] - counted)
            self.seconds["productive"] = counted
            self._at = {step: seconds for step, seconds in self._at.items() if step <= first_step}

    def add(self, kind: str, seconds: float) -> None:
        self.seconds[kind] += seconds
        self.latest[kind] = self.latest.get(kind, 0.0) + seconds

    @contextlib.contextmanager
    def timing(self, kind: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.add(kind, time.perf_counter() - start)

    def saved(self, step: int) -> None:
        """Note that a run killed from now on goes on from `step`."""
        self._at[step] = self.seconds["productive"]
        self._at = dict(sorted(self._at.items())[-20:])  # as many as may still be restored

    def share(self) -> float:
        """Return the productive part of all time since the first start."""
        return self.seconds["productive"] / max(1e-9, sum(self.seconds.values()))

    def write(self) -> None:
        if self._active:
            text = json.dumps({"seconds": self.seconds, "productive_at": self._at, "time": time.time()})
            temporary = self._path.with_name(f".{FILE}.tmp")
            temporary.write_text(text)
            temporary.replace(self._path)


def _read(path: epath.Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None

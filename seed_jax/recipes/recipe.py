"""Recipes: several stages one after the other below one workdir.

Each stage is an ordinary one with a config of its own; a recipe passes the paths of earlier stages to later ones.
Finished steps are recorded and interrupted ones resume from their checkpoint: the same command continues at any point.
"""

import abc
import copy
import dataclasses
import datetime
import logging
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from seed_jax import __version__, accelerators
from seed_jax.errors import UserError
from seed_jax.files import read_json, write_json
from seed_jax.train.config.schema import to_dict
from seed_jax.train.loop import train
from seed_jax.train.stages.registry import parse_config

TIMES = "times.json"
CPU_TIMES = "cpu_times.json"
_REMEDY = "restore it, or remove it to run again what it records"


class Clock:
    """Measures wall time and processor time from its creation on."""

    def __init__(self):
        self._wall, self._cpu = time.perf_counter(), _processor_seconds()

    def wall(self) -> float:
        return time.perf_counter() - self._wall

    def cpu(self) -> float:
        """Return the seconds of all threads and of child processes that have ended."""
        return _processor_seconds() - self._cpu


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of a recipe.

    Attributes:
        name: unique within the recipe.
        seconds: approximate duration on two CPU cores; only ratios matter once some steps are finished.
        run: does the work; resumes where it was interrupted.
    """

    name: str
    seconds: float | int
    run: Callable[[], None]


class Recipe(abc.ABC):
    """Steps that are run in order, each once.

    Args:
        config: options; of them, all recipes have `seed` and `stages`.
        workdir: where everything is written.
    """

    def __init__(self, config: Any, workdir: Path):
        self.config = config
        self.workdir = workdir
        self._clock = Clock()  # of the present step

    @abc.abstractmethod
    def steps(self) -> Iterator[Step]:
        """Yield the steps in order."""

    def run(self) -> None:
        """Run the steps that are not finished, and log the remaining time."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._check_resume()
        steps = list(self.steps())
        times, cpu_times = self.times(), self.times(CPU_TIMES)
        for number, step in enumerate(steps, 1):
            if step.name in times:
                continue
            remaining = _format_duration(remaining_seconds(steps, times))
            logging.info("== %d/%d %s: about %s remaining in total ==", number, len(steps), step.name, remaining)
            self._clock = Clock()
            step.run()
            times[step.name], cpu_times[step.name] = self._clock.wall(), self._clock.cpu()
            write_json(self.workdir / CPU_TIMES, cpu_times)
            write_json(self.workdir / TIMES, times)
        logging.info("Finished in %s: %s", _format_duration(sum(times.values())), self.workdir)

    def times(self, file: str = TIMES) -> dict[str, float]:
        """Return the seconds that finished steps took, of wall time or (`CPU_TIMES`) of processor time."""
        path = self.workdir / file
        times = read_json(path, _REMEDY) if path.is_file() else {}
        if not all(isinstance(seconds, int | float) for seconds in times.values()):
            raise UserError(f"{path} does not hold seconds by step: {_REMEDY}.")
        return times

    def _check_resume(self) -> None:
        """Refuse to resume with other options than the workdir was begun with."""
        path = self.workdir / "recipe.json"
        options = to_dict(self.config)
        if path.is_file() and read_json(path, _REMEDY) != options:
            raise UserError(
                f"{self.workdir} was begun with other options ({path}): use the same, or choose another --workdir."
            )
        write_json(path, options)

    def train(self, name: str, mixture: list[dict[str, Any]], paths: Mapping[str, Path]) -> None:
        """Train the stage `name` in the workdir's directory of this name.

        Args:
            name: key of `config.stages`.
            mixture: value of `data.mixture`.
            paths: dotted option -> path, such as "model.init".
        """
        options = copy.deepcopy(self.config.stages[name])
        options["seed"] = self.config.seed
        options["data"]["mixture"] = mixture
        for key, path in paths.items():
            section, _, option = key.partition(".")
            options[section][option] = str(path)
        train(parse_config(options), self.workdir / name)


def provenance(seed: int, cpu_seconds: float) -> dict[str, str]:
    """Return what tells runs apart, by name: seed, version, date, machine and processor time."""
    cores = accelerators.cpu_cores()
    return {
        "seed": str(seed),
        "version": _version(),
        "date": datetime.date.today().isoformat(),
        "machine": f"{accelerators.cpu_name()}, {cores} core{'s' if cores != 1 else ''}",
        "processor time": f"{cpu_seconds:.0f} s",
    }


def _version() -> str:
    """Return the commit of a checkout, and otherwise the version of the package."""
    root = Path(__file__).parents[2]
    command = ("git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*")
    if not (root / ".git").exists():  # an installed package, perhaps within another project's checkout
        return __version__
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return __version__


def remaining_seconds(steps: list[Step], times: Mapping[str, float]) -> float:
    """Estimate the duration of the unfinished steps from the speed of the finished ones."""
    finished = [step for step in steps if step.name in times]
    expected = sum(step.seconds for step in finished)
    speed = sum(times[step.name] for step in finished) / expected if finished else 1.0
    return speed * sum(step.seconds for step in steps if step.name not in times)


def _format_duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))

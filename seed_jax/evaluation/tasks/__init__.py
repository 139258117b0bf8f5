"""The tasks of `seed-jax eval`: every module of this package lists its own in `TASKS`."""

import functools
import importlib
import pkgutil
from collections.abc import Mapping

from seed_jax.errors import UserError
from seed_jax.evaluation.task import Task


@functools.cache
def all_tasks() -> Mapping[str, Task]:
    """Return the tasks by name."""
    tasks: dict[str, Task] = {}
    for module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        for task in importlib.import_module(f"{__name__}.{module}").TASKS:
            if task.name in tasks:
                raise ValueError(f"two tasks are called {task.name!r}")
            tasks[task.name] = task
    return tasks


def find_task(name: str) -> Task:
    """Return a task by name.

    Raises:
        UserError: there is no such task.
    """
    if name not in all_tasks():
        raise UserError(f"Unknown task {name!r}: expected some of {', '.join(sorted(all_tasks()))}.")
    return all_tasks()[name]

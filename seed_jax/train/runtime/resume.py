"""Compare the config of a resumed run with the one that it was last run with."""

import logging
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from seed_jax.errors import UserError
from seed_jax.train.config import TrainConfig, parse
from seed_jax.train.config.common import OptimizerConfig
from seed_jax.train.config.schema import to_dict
from seed_jax.train.optimizer import make_schedule

# Changing these would resume the weights or the position of another model or data set.
FIXED = (
    "stage",
    "model.config",
    "model.train",
    "model.head",
    "model.text_branch",
    "model.joint_width",
    "lora.rank",
    "data.mixture",
    "data.sequence_length",
    "data.weight_by",
)
_SCHEDULE = ("optimizer", "steps")


def check_resume(previous: dict[str, Any] | None, config: TrainConfig, last_step: int | None) -> None:
    """Log what changed since the last start, and refuse changes that cannot be resumed.

    Args:
        previous: the resolved config of the last start, or None for a fresh run.
        config: the resolved config of this start.
        last_step: the newest checkpoint, or None where there is none; then everything may change.

    Raises:
        UserError: an option that decides what is trained changed, or fewer steps are asked for than are done.
    """
    if last_step is None:
        return
    if config.steps < last_step:
        raise UserError(
            f"steps is {config.steps}, but step {last_step} is already done: raise steps or choose another --workdir."
        )
    if previous is None:
        return
    changes = config_changes(previous, to_dict(config))
    refused = [name for name in changes if name in FIXED]
    if refused:
        listed = "; ".join(f"{name} {changes[name][0]!r} -> {changes[name][1]!r}" for name in refused)
        raise UserError(
            f"The run cannot be resumed with other settings of what it trains ({listed}): restore them or choose "
            "another --workdir."
        )
    if not changes or jax.process_index() != 0:
        return
    lines = [f"  {name} {old!r} -> {new!r}" for name, (old, new) in sorted(changes.items())]
    if any(name.startswith(_SCHEDULE) for name in changes):
        lines += _learning_rate_change(previous, config, last_step)
    logging.warning("Resuming with changed settings:\n%s", "\n".join(lines))


def config_changes(previous: dict[str, Any], current: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return dotted option -> (previous, current value) for every option that differs; None where it is missing."""
    old, new = (flatten_dict(values, sep=".") for values in (previous, current))
    return {name: (old.get(name), new.get(name)) for name in sorted({*old, *new}) if old.get(name) != new.get(name)}


def _learning_rate_change(previous: dict[str, Any], config: TrainConfig, step: int) -> list[str]:
    try:
        options = parse(OptimizerConfig, previous["optimizer"])
        before = float(np.asarray(make_schedule(options, previous["steps"])(step)))
    except (UserError, KeyError, TypeError):
        return []  # written by a version with other options
    after = float(np.asarray(make_schedule(config.optimizer, config.steps)(step)))
    return [f"  learning rate at step {step}: {before:.3g} -> {after:.3g}"] if before != after else []

"""Exponential moving averages of parameters, kept beside them in the collection `ema`."""

from typing import Any

import jax
import jax.numpy as jnp

Tree = dict[str, Any]
COLLECTION = "ema"


def first_averages(params: Tree) -> Tree:
    """Return the averages before the first step: the parameters themselves."""
    return {**params, "updates": jnp.zeros((), jnp.float32)}


def next_averages(averages: Tree, params: Tree, decay: float) -> Tree:
    """Return the averages after a step that led to `params`.

    While there have been few updates the decay is lower, (1 + n) / (10 + n), so that the start is soon forgotten.
    """
    updates = averages["updates"] + 1
    kept = jnp.minimum(decay, (1 + updates) / (10 + updates))
    old = {name: averages[name] for name in params}
    return {**jax.tree.map(lambda a, p: a + (1 - kept) * (p - a), old, params), "updates": updates}

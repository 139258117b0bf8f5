"""A large batch computed a few rows at a time: for CPUs only, whose caches hold the activations of a few pictures.

Accelerators want the whole batch at once; nothing here is used on them.
"""

from collections.abc import Callable
from typing import Any

import jax

# ViT-g on a CPU, a block and a picture: 75 ms in groups of 4, 85 of 1 or 8, 105 of 16. A group of 4 still lies in the
# caches, and is large enough for the weights' own traffic not to count (AMD EPYC with AVX-512, one core, float32).
ROWS = 4


def in_groups(function: Callable[[Any, jax.Array], jax.Array], rows: int = ROWS) -> Callable[..., jax.Array]:
    """Return `function(params, batch)` that runs over up to `rows` rows at a time, one program inside one loop."""

    def run(params: Any, batch: jax.Array) -> jax.Array:
        size = max(n for n in range(1, rows + 1) if len(batch) % n == 0)
        groups = batch.reshape(-1, size, *batch.shape[1:])
        found = jax.lax.map(lambda group: function(params, group), groups)
        return found.reshape(len(batch), *found.shape[2:])

    return run

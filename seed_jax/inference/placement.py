"""Where rows and what a loop carries lie: on one device, or cut over the devices of a mesh."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh

from seed_jax import sharding
from seed_jax.inference.settings import Controls
from seed_jax.models.llama import KVCache


@dataclasses.dataclass(frozen=True)
class Placement:
    """One device (no mesh) or a mesh."""

    mesh: Mesh | None = None

    @property
    def shards(self) -> int:
        """Return into how many parts a batch is cut."""
        return 1 if self.mesh is None else sharding.batch_shards(self.mesh)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Let programs that are called inside know the mesh."""
        with contextlib.ExitStack() as stack:
            if self.mesh is not None:
                stack.enter_context(jax.set_mesh(self.mesh))
                stack.enter_context(nn.logical_axis_rules(sharding.RULES))
            yield

    def rows(self, rows: Any) -> Any:
        return jax.device_put(rows, None if self.mesh is None else sharding.batch_sharding(self.mesh))

    def controls(self, controls: Controls) -> Controls:
        if self.mesh is None or controls.stops is None:
            return self.rows(controls)
        table = jax.device_put(controls.stops.table, sharding.replicated(self.mesh))
        placed = self.rows(controls.replace(stops=None))
        return placed.replace(stops=controls.stops.replace(table=table, which=self.rows(controls.stops.which)))


def by_rows(state: Any) -> Any:
    """Cut what a loop carries by rows, before the first step as after it: else the second step would compile anew."""

    def cut_rows(leaf: Any) -> Any:
        if isinstance(leaf, KVCache) or leaf.ndim == 0:
            return leaf  # the cache is cut where it is written
        return nn.with_logical_constraint(leaf, ("batch", *[None] * (leaf.ndim - 1)))

    return jax.tree.map(cut_rows, state, is_leaf=lambda leaf: isinstance(leaf, KVCache))

"""The keys and values of past positions, as plain arrays that a decoding loop carries."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

AXES = ("layers", "batch", "act_heads", None, None)


@flax.struct.dataclass
class LayerCache:
    """What one layer attends to: slot s of a row holds position s of its sequence."""

    k: Float[Array, "B K S D"]
    v: Float[Array, "B K S D"]


@flax.struct.dataclass
class KVCache:
    """Keys and values of every layer, row, key-value head and slot: a head's slots lie together, as its products want.

    The whole stack is one array that is written in place, so that a loop which carries it needs it once; emitting
    every layer's part as a scanned output would copy all of it at every token.
    """

    k: Float[Array, "L B K S D"] | Any  # Any: shapes, shardings and axes travel in the same structure
    v: Float[Array, "L B K S D"] | Any

    @classmethod
    def zeros(cls, layers: int, batch: int, slots: int, heads: int, head_size: int, dtype: jnp.dtype) -> "KVCache":
        empty = nn.with_logical_constraint(jnp.zeros((layers, batch, heads, slots, head_size), dtype), AXES)
        return cls(k=empty, v=empty)

    @property
    def slots(self) -> int:
        return self.k.shape[3]

    def write(
        self,
        layer: Int[Array, ""],
        k: Float[Array, "B T K D"],
        v: Float[Array, "B T K D"],
        positions: Int[Array, "B T"] | None,
    ) -> "KVCache":
        """Store each row's keys and values at its own positions, or at slots 0 to T - 1 where there are none.

        Positions beyond the last slot are dropped.
        """
        return KVCache(k=_write(self.k, layer, k, positions), v=_write(self.v, layer, v, positions))

    def read(self, layer: Int[Array, ""]) -> LayerCache:
        return LayerCache(k=self.k[layer], v=self.v[layer])


def _write(
    stack: Float[Array, "L B K S D"],
    layer: Int[Array, ""],
    new: Float[Array, "B T K D"],
    positions: Int[Array, "B T"] | None,
) -> Float[Array, "L B K S D"]:
    new = new.astype(stack.dtype)
    if positions is None:
        stack = jax.lax.dynamic_update_slice(stack, new.swapaxes(1, 2)[None], (layer, 0, 0, 0, 0))
    else:
        # The row is a batch dimension of the scatter, not an index: else the partitioner would gather all rows' caches.
        places = jnp.stack(jnp.broadcast_arrays(layer, positions), axis=-1)  # [B, T, (layer, slot)]
        numbers = jax.lax.ScatterDimensionNumbers(
            update_window_dims=(2, 3),
            inserted_window_dims=(0, 3),
            scatter_dims_to_operand_dims=(0, 3),
            operand_batching_dims=(1,),
            scatter_indices_batching_dims=(0,),
        )
        stack = jax.lax.scatter(stack, places, new, numbers, mode=jax.lax.GatherScatterMode.FILL_OR_DROP)
    return nn.with_logical_constraint(stack, AXES)

"""The KV cache: keys and values of past positions, as plain arrays that a decoding loop carries."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Float, Int

from seed_jax.typing import Leaf

CACHE_AXES = ("layers", "batch", "act_heads", None, None)


@flax.struct.dataclass
class LayerCache:
    """Keys and values that one layer attends to: slot s of a sequence holds its position s."""

    k: Float[Array, "B K S D"]
    v: Float[Array, "B K S D"]


@flax.struct.dataclass
class KVCache:
    """Keys and values of every layer, sequence, key-value head and slot, in head-major layout.

    All layers are one array that is updated in place, so that a loop which carries it needs it once; returning every
    layer's part as a scanned output would copy all of it at every token.

    Attributes:
        k: keys.
        v: values.
        read_length: `read` returns this many slots, which must hold all positions in use; None: all.
    """

    k: Float[Array, "L B K S D"] | Any  # Any: shapes, shardings and axes have the same structure
    v: Float[Array, "L B K S D"] | Any
    read_length: int | None = flax.struct.field(pytree_node=False, default=None, kw_only=True)

    @classmethod
    def zeros(cls, layers: int, batch: int, slots: int, heads: int, head_size: int, dtype: jnp.dtype) -> "KVCache":
        """Create an empty cache."""
        empty = with_logical_constraint(jnp.zeros((layers, batch, heads, slots, head_size), dtype), CACHE_AXES)
        return cls(k=empty, v=empty)

    @property
    def slots(self) -> int:
        """Maximum number of positions of a sequence."""
        return self.k.shape[3]

    @property
    def read_slots(self) -> int:
        """Number of slots that `read` returns."""
        return self.slots if self.read_length is None else self.read_length

    def write(
        self,
        layer: Int[Leaf, ""],
        k: Float[Array, "B T K D"],
        v: Float[Array, "B T K D"],
        positions: Int[Array, "B T"] | None,
    ) -> "KVCache":
        """Return the cache with new keys and values of one layer.

        Args:
            layer: index of the layer.
            k: keys of T positions.
            v: values.
            positions: slots to write to, those beyond the last slot are dropped; None: slots 0 to T - 1.
        """
        return dataclasses.replace(self, k=_write(self.k, layer, k, positions), v=_write(self.v, layer, v, positions))

    def read(self, layer: Int[Leaf, ""]) -> LayerCache:
        """Return the keys and values of one layer."""
        if self.read_length is None:
            return LayerCache(k=self.k[layer], v=self.v[layer])
        return LayerCache(k=self.k[layer, :, :, : self.read_length], v=self.v[layer, :, :, : self.read_length])


@flax.struct.dataclass
class KVCacheRow(KVCache):
    """One sequence of a cache that holds many: a batch of one is written to and read from row `row`, in place.

    The positions of a write must be consecutive.
    """

    row: Int[Array, ""] | Any = None

    def write(
        self,
        layer: Int[Leaf, ""],
        k: Float[Array, "B T K D"],
        v: Float[Array, "B T K D"],
        positions: Int[Array, "B T"] | None,
    ) -> "KVCacheRow":
        """Return the cache with new keys and values of one layer, from position `positions[0, 0]` on."""
        first = 0 if positions is None else positions[0, 0]

        def update(stack: Array, new: Array) -> Array:
            new = new.astype(stack.dtype).swapaxes(1, 2)[None]
            return with_logical_constraint(
                jax.lax.dynamic_update_slice(stack, new, (layer, self.row, 0, first, 0)), CACHE_AXES
            )

        return dataclasses.replace(self, k=update(self.k, k), v=update(self.v, v))

    def read(self, layer: Int[Leaf, ""]) -> LayerCache:
        """Return the keys and values of one layer."""

        def select(stack: Array) -> Array:
            _, _, heads, _, size = stack.shape
            return jax.lax.dynamic_slice(stack, (layer, self.row, 0, 0, 0), (1, 1, heads, self.read_slots, size))[0]

        return LayerCache(k=select(self.k), v=select(self.v))


@flax.struct.dataclass
class KVCacheLayers(KVCache):
    """A cache with an array per layer, [B, K, S, D], for models with unrolled layers.

    Reading a layer copies nothing. A layer of one stacked array is copied before each matmul on a CPU, which took more
    than half the time of a decode step with 32 sequences.

    Attributes:
        k: keys of each layer.
        v: values of each layer.
    """

    @property
    def slots(self) -> int:
        """Maximum number of positions of a sequence."""
        return self.k[0].shape[2]

    def write(
        self,
        layer: Int[Leaf, ""],
        k: Float[Array, "B T K D"],
        v: Float[Array, "B T K D"],
        positions: Int[Array, "B T"] | None,
    ) -> "KVCacheLayers":
        """Return the cache with new keys and values of one layer, whose index must be known at compile time."""
        index = int(layer)
        only: Any = np.array(0, np.int32)

        def update(arrays: Any, new: Array) -> tuple[Array, ...]:
            written = _write(arrays[index][None], only, new, positions)[0]
            return (*arrays[:index], written, *arrays[index + 1 :])

        return dataclasses.replace(self, k=update(self.k, k), v=update(self.v, v))

    def read(self, layer: Int[Leaf, ""]) -> LayerCache:
        """Return the keys and values of one layer."""
        return LayerCache(k=self.k[int(layer)], v=self.v[int(layer)])


def _write(
    stack: Float[Array, "L B K S D"],
    layer: Int[Leaf, ""],
    new: Float[Array, "B T K D"],
    positions: Int[Array, "B T"] | None,
) -> Float[Array, "L B K S D"]:
    new = new.astype(stack.dtype)
    if positions is None:
        stack = jax.lax.dynamic_update_slice(stack, new.swapaxes(1, 2)[None], (layer, 0, 0, 0, 0))
    else:
        # The sequence is a batch dimension of the scatter, not an index: else the partitioner would all-gather the
        # cache.
        indices = jnp.stack(jnp.broadcast_arrays(layer, positions), axis=-1)  # [B, T, (layer, slot)]
        numbers = jax.lax.ScatterDimensionNumbers(
            update_window_dims=(2, 3),
            inserted_window_dims=(0, 3),
            scatter_dims_to_operand_dims=(0, 3),
            operand_batching_dims=(1,),
            scatter_indices_batching_dims=(0,),
        )
        stack = jax.lax.scatter(stack, indices, new, numbers, mode=jax.lax.GatherScatterMode.FILL_OR_DROP)
    return with_logical_constraint(stack, CACHE_AXES)

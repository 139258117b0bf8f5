"""FSDP matmul: multiply by a weight that is sharded over the batch axes, with a reduce-scatter in the backward pass.

By itself the SPMD partitioner all-gathers such a weight, but all-reduces its gradient and discards most of the result
where the axis spans a whole TPU slice. Written per device (`shard_map`), the transpose of the all-gather is a
reduce-scatter: half the bytes. Mesh axes that do not shard the batch (tensor) are left to the partitioner.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax.core.spmd import get_logical_axis_rules
from flax.linen.spmd import logical_to_mesh_axes
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Shaped

Axes = tuple[str | None, ...]
RESULT_NAME = "fsdp_matmul"  # of the result, for remat policies
# Maximum number of devices of a reduce-scatter: over a whole slice, TPU compilers turn it into an all-reduce.
MAX_SCATTER_GROUP = 8


def batch_axes(batch_size: int) -> tuple[str, ...]:
    """Return the mesh axes over which a batch is sharded.

    Returns:
        Names of mesh axes; () without a mesh, if the axes do not divide `batch_size`, or inside another `shard_map`
        over them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    rules = get_logical_axis_rules()
    if mesh.empty or not rules:
        return ()
    (names,) = logical_to_mesh_axes(("batch",), rules) or (None,)
    names = (names,) if isinstance(names, str) else tuple(names or ())
    if any(name in mesh.manual_axes for name in names):
        return ()
    shards = math.prod(mesh.shape[name] for name in names)
    return names if shards > 1 and batch_size % shards == 0 else ()


def weight_spec(axes: Axes, batch_axes: tuple[str, ...]) -> PartitionSpec:
    """Return how a weight with these logical axes is sharded over the batch axes."""
    spec = logical_to_mesh_axes(axes, get_logical_axis_rules()) or ()
    return PartitionSpec(*(name if name in batch_axes else None for name in spec))


def fusion_barrier(x: Shaped[Array, "*S"]) -> Shaped[Array, "*S"]:
    """Materialize x: prevent XLA from fusing and recomputing it inside the consuming matmuls.

    TPU compilers fuse norms, activations and their gradients into the neighbouring matmuls, whose tiling then suits
    neither: without barriers, the planned time of an 8B step on v5e is 6 % longer.
    """
    return jax.lax.optimization_barrier(x)


def fsdp_matmul(
    x: Float[Array, "*B I"], kernel: Float[Array | np.ndarray, "I O"], axes: Axes, precision: jax.lax.PrecisionLike
) -> Float[Array, "*B O"]:
    """Return `x @ kernel` in the dtype of x.

    Args:
        x: activations; the leading axis is the batch.
        kernel: the weight, in the dtype of its storage.
        axes: logical axes of the kernel.
        precision: of the matmul.
    """
    batch = batch_axes(x.shape[0]) if x.ndim > 1 else ()
    spec = weight_spec(axes, batch) if batch else PartitionSpec()
    if not any(spec):
        return jnp.matmul(x, kernel.astype(x.dtype), precision=precision)
    return checkpoint_name(_matmul(x, kernel, batch, spec, precision), RESULT_NAME)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _matmul(x, kernel, batch_axes, kernel_spec, precision):
    return jnp.matmul(x, kernel.astype(x.dtype), precision=precision)


def _matmul_forward(x, kernel, batch_axes, kernel_spec, precision):
    return _matmul(x, kernel, batch_axes, kernel_spec, precision), (x, kernel)


def _matmul_backward(batch_axes, kernel_spec, precision, residuals, cotangent):
    """Leave the gradient of `x` to the partitioner, which overlaps its all-gather; reduce-scatter the kernel's."""
    x, kernel = residuals
    cotangent = fusion_barrier(cotangent)
    x_gradient = jnp.matmul(cotangent, kernel.astype(x.dtype).T, precision=precision)
    return x_gradient, kernel_gradient(x, cotangent, batch_axes, kernel_spec, precision).astype(kernel.dtype)


def kernel_gradient(
    x: Float[Array, "*B I"],
    cotangent: Float[Array, "*B O"],
    batch_axes: tuple[str, ...],
    kernel_spec: PartitionSpec,
    precision: jax.lax.Precision | None,
) -> Float[Array, "I O"]:
    """Return the gradient of a kernel, reduce-scattered to how it is sharded over the batch axes.

    Args:
        x: what the kernel was multiplied by.
        cotangent: of the product.
        batch_axes: as `batch_axes` returns them.
        kernel_spec: as `weight_spec` returns it.
        precision: of the matmul.
    """

    def local_kernel_gradient(x, cotangent):
        contracted = tuple(range(x.ndim - 1))
        # The sharded dimension comes first: if it is the last one and its shards do not fill whole tiles, TPU compilers
        # turn the reduce-scatter into an all-reduce.
        transposed = kernel_spec[0] is None
        factors = (cotangent, x) if transposed else (x, cotangent)
        total = jax.lax.dot_general(*factors, ((contracted, contracted), ((), ())), precision=precision)
        for axis, name in enumerate(kernel_spec[::-1] if transposed else kernel_spec):
            total = total if name is None else reduce_scatter(total, name, axis)
        total = total.T if transposed else total
        replicated_axes = tuple(axis for axis in batch_axes if axis not in kernel_spec)
        return jax.lax.psum(total, replicated_axes) if replicated_axes else total

    batch_spec = PartitionSpec(batch_axes)
    return jax.shard_map(
        local_kernel_gradient, in_specs=(batch_spec, batch_spec), out_specs=kernel_spec, axis_names=set(batch_axes)
    )(x, cotangent)


_matmul.defvjp(_matmul_forward, _matmul_backward)


def all_gather_weight(shard: Array, spec: PartitionSpec) -> Array:
    """All-gather a weight from its shards inside `shard_map`; the gradient is reduce-scattered."""
    for axis, name in enumerate(spec):
        if name is not None:
            shard = all_gather(shard, name, axis)
    return shard


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def all_gather(shard: Array, name: str, axis: int) -> Array:
    """Concatenate the shards of a mesh axis along `axis`."""
    return jax.lax.all_gather(shard, name, axis=axis, tiled=True)


def _all_gather_forward(shard, name, axis):
    return all_gather(shard, name, axis), None


def _all_gather_backward(name, axis, residuals, cotangent):
    del residuals
    return (reduce_scatter(cotangent, name, axis),)


all_gather.defvjp(_all_gather_forward, _all_gather_backward)


def scatter_groups(num_devices: int) -> tuple[int, int]:
    """Return the group sizes of a reduce-scatter in two stages; (num_devices, 1) is a single stage.

    A larger first group leaves less data to the second stage, but neither group may be a whole slice.
    """
    divisors = [size for size in range(2, math.isqrt(num_devices) + 1) if num_devices % size == 0]
    if num_devices <= MAX_SCATTER_GROUP or not divisors:
        return num_devices, 1
    second = max(divisors, key=lambda size: (num_devices // size >= MAX_SCATTER_GROUP, size))
    return num_devices // second, second


def reduce_scatter(x: Array, name: str, axis: int) -> Array:
    """Sum over a mesh axis and keep this device's shard along `axis`; in two stages over many devices."""
    outer, inner = scatter_groups(jax.lax.axis_size(name))
    if inner == 1:
        return jax.lax.psum_scatter(x, name, scatter_dimension=axis, tiled=True)
    # Device a * inner + b ends with shard a * inner + b: first the devices with the same b scatter the outer shards.
    columns = [[a * inner + b for a in range(outer)] for b in range(inner)]
    rows = [[a * inner + b for b in range(inner)] for a in range(outer)]
    for groups in (columns, rows):
        x = jax.lax.psum_scatter(x, name, scatter_dimension=axis, axis_index_groups=groups, tiled=True)
    return x

"""Products with weights that are cut over the devices of a batch, so that gradients are scattered and not all-reduced.

Left to itself the partitioner gathers such a weight, but sums its gradient over all devices and throws most of it away
where the group is a whole TPU slice. Written per device (`shard_map`), the transpose of the gather is a scatter: half
the bytes. Axes that do not cut the batch (tensor) stay the partitioner's business.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Shaped

Axes = tuple[str | None, ...]
STAGE = 8  # most devices that scatter in one stage: over a whole slice TPU compilers make an all-reduce of it


def batch_axes(rows: int) -> tuple[str, ...]:
    """Return the mesh axes that cut a batch of `rows`; () without a mesh, or where they do not divide it.

    Inside another `shard_map` over them there are none either.
    """
    mesh, rules = jax.sharding.get_abstract_mesh(), nn.get_logical_axis_rules()
    if mesh.empty or not rules:
        return ()
    (found,) = nn.logical_to_mesh_axes(("batch",), rules)
    names = (found,) if isinstance(found, str) else found or ()
    parts = 1
    for name in names:
        if name in mesh.manual_axes:
            return ()
        parts *= mesh.shape[name]
    return tuple(names) if parts > 1 and rows % parts == 0 else ()


def place_of(axes: Axes, manual: tuple[str, ...]) -> PartitionSpec:
    """Return how a weight with these logical axes is cut over the axes of a batch."""
    spec = nn.logical_to_mesh_axes(axes, nn.get_logical_axis_rules())
    return PartitionSpec(*(name if name in manual else None for name in spec))


def settled(x: Shaped[Array, "*S"]) -> Shaped[Array, "*S"]:
    """Return `x`, which is to be computed once and as it stands, not anew inside the products that take it.

    TPU compilers work norms, activations and their gradients into the products beside them, whose tiles then suit
    neither: without this, a step of the 8B on v5e is 6 % longer by the plan.
    """
    return jax.lax.optimization_barrier(x)


def product(
    x: Float[Array, "*B I"], kernel: Float[Array | np.ndarray, "I O"], axes: Axes, precision: jax.lax.Precision | None
) -> Float[Array, "*B O"]:
    """Return `x @ kernel` in x's dtype; the leading axis of `x` is the batch."""
    manual = batch_axes(x.shape[0]) if x.ndim > 1 else ()
    place = place_of(axes, manual) if manual else PartitionSpec()
    if not any(place):
        return jnp.matmul(x, kernel.astype(x.dtype), precision=precision)
    return checkpoint_name(_product(x, kernel, manual, place, precision), "product")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _product(x, kernel, manual, place, precision):
    return jnp.matmul(x, kernel.astype(x.dtype), precision=precision)


def _product_forward(x, kernel, manual, place, precision):
    return _product(x, kernel, manual, place, precision), (x, kernel)


def _product_backward(manual, place, precision, kept, cotangent):
    """Leave the gradient of `x` to the partitioner, which overlaps its gather; scatter that of the kernel."""
    x, kernel = kept
    cotangent = settled(cotangent)
    to_x = jnp.matmul(cotangent, kernel.astype(x.dtype).T, precision=precision)

    def local(x, cotangent):
        batch = tuple(range(x.ndim - 1))
        # What is scattered leads: of a last axis whose parts fill no tiles, TPU compilers make an all-reduce.
        turned = place[0] is None
        factors = (cotangent, x) if turned else (x, cotangent)
        total = jax.lax.dot_general(*factors, ((batch, batch), ((), ())), precision=precision)
        for axis, name in enumerate(place[::-1] if turned else place):
            total = total if name is None else scatter(total, name, axis)
        total = total.T if turned else total
        alike = tuple(axis for axis in manual if axis not in place)
        return jax.lax.psum(total, alike) if alike else total

    rows = PartitionSpec(manual)
    mapped = jax.shard_map(local, in_specs=(rows, rows), out_specs=place, axis_names=set(manual))
    return to_x, mapped(x, cotangent).astype(kernel.dtype)


_product.defvjp(_product_forward, _product_backward)


def whole(part: Array, place: PartitionSpec) -> Array:
    """Gather a weight from its parts; its gradient is summed and scattered to them."""
    for axis, name in enumerate(place):
        if name is not None:
            part = gather(part, name, axis)
    return part


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather(part: Array, name: str, axis: int) -> Array:
    """Join the parts along a mesh axis."""
    return jax.lax.all_gather(part, name, axis=axis, tiled=True)


def _gather_forward(part, name, axis):
    return gather(part, name, axis), None


def _gather_backward(name, axis, kept, cotangent):
    del kept
    return (scatter(cotangent, name, axis),)


gather.defvjp(_gather_forward, _gather_backward)


def stages(size: int) -> tuple[int, int]:
    """Return how many of `size` devices share out in a first stage and in a second; (size, 1) is one stage alone.

    The more share the first, the less is left for the second; but neither may be a whole slice.
    """
    seconds = [part for part in range(2, math.isqrt(size) + 1) if size % part == 0]
    if size <= STAGE or not seconds:
        return size, 1
    second = max(seconds, key=lambda part: (size // part >= STAGE, part))
    return size // second, second


def scatter(x: Array, name: str, axis: int) -> Array:
    """Sum over a mesh axis and keep this device's part; in two stages where there are many devices."""
    outer, inner = stages(jax.lax.axis_size(name))
    if inner == 1:
        return jax.lax.psum_scatter(x, name, scatter_dimension=axis, tiled=True)
    # Device a * inner + b ends with part a * inner + b: first the devices of one b share the outer parts out.
    columns = [[a * inner + b for a in range(outer)] for b in range(inner)]
    rows = [[a * inner + b for b in range(inner)] for a in range(outer)]
    for groups in (columns, rows):
        x = jax.lax.psum_scatter(x, name, scatter_dimension=axis, axis_index_groups=groups, tiled=True)
    return x

"""Device meshes, and the one table that maps logical axis names to mesh axes."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.core import meta
from flax.linen.spmd import logical_to_mesh
from flax.traverse_util import flatten_dict
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from seed_jax.errors import UserError
from seed_jax.typing import Tree

MESH_AXES = ("replica", "fsdp", "tensor")
BATCH_AXES = ("replica", "fsdp")

# Logical axis -> mesh axis. `embed` is the model dimension of every weight: sharded over fsdp, all-gathered at its use.
# Activations have their own names (`act_*`), because a weight and an activation of one size are sharded differently.
LOGICAL_AXIS_RULES = (
    ("embed", "fsdp"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("vocab", "tensor"),
    ("adapter", ("tensor", "fsdp")),
    ("norm", None),
    ("layers", None),
    ("batch", BATCH_AXES),
    ("sequence", None),
    ("residual_sequence", "tensor"),  # between the matmuls of blocks: sequence parallelism
    ("act_embed", None),
    ("act_heads", "tensor"),
    ("act_mlp", "tensor"),
    ("act_vocab", "tensor"),
)
# A parameter above this size must not be replicated on every device unless a rule allows it.
REPLICATED_LIMIT_BYTES = 1 << 20
MAX_REPLICATED_FRACTION = 0.02  # of all parameters: norm scales and biases


def make_mesh(shape: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Build the mesh over all devices, with the slices of a multi-slice job along `replica`.

    Args:
        shape: size per axis name. One size may be -1, which takes the remaining devices; a missing axis has size 1.
        devices: the devices to use, by default all.

    Raises:
        UserError: the sizes do not fit the devices, or `fsdp` or `tensor` would span slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = mesh_sizes(shape, len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1 and sizes[0] % slices:
        raise UserError(
            f"mesh.replica is {sizes[0]}, expected a multiple of {slices}: only gradients should cross the network "
            f"between the {slices} slices, not the parameters that fsdp and tensor gather."
        )
    if devices[0].platform == "cpu":
        grid = np.asarray(devices).reshape(sizes)
    elif slices > 1:
        within_slice = (sizes[0] // slices, *sizes[1:])
        across_slices = (slices, 1, 1)
        grid = mesh_utils.create_hybrid_device_mesh(
            within_slice, across_slices, devices, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def mesh_sizes(shape: Mapping[str, int], count: int) -> tuple[int, ...]:
    """Return the size of each of `MESH_AXES` over `count` devices, with -1 filled in."""
    unknown = sorted(set(shape) - set(MESH_AXES))
    if unknown:
        raise UserError(f"mesh.{unknown[0]} is not a mesh axis: expected {', '.join(MESH_AXES)}.")
    sizes = [int(shape.get(axis, 1)) for axis in MESH_AXES]
    described = " x ".join(f"{axis} {size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"The mesh {described} is not valid: sizes must be positive, and at most one may be -1.")
    if count % known or (-1 not in sizes and known != count):
        raise UserError(
            f"The mesh {described} does not fit {count} device(s): the product of mesh.replica, mesh.fsdp and "
            "mesh.tensor must equal the number of devices (one of them may be -1)."
        )
    return tuple(count // known if size == -1 else size for size in sizes)


def num_batch_shards(mesh: Mesh) -> int:
    """Return the number of shards of a batch: the product of the data-parallel axes."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: its leading axis over all data-parallel devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that every device holds in full."""
    return NamedSharding(mesh, PartitionSpec())


def local_batch_indices(sharding: NamedSharding, batch_size: int) -> list[int]:
    """Return the indices into a global batch that this process's devices hold, in ascending order.

    Where the tensor axis spans processes, several processes hold the same indices.
    """
    indices = set()
    for index in sharding.addressable_devices_indices_map((batch_size,)).values():
        if index is not None:
            indices.update(range(*index[0].indices(batch_size)))
    return sorted(indices)


def shard_batch(local_batch: dict[str, np.ndarray], sharding: NamedSharding, batch_size: int) -> dict[str, jax.Array]:
    """Assemble a global batch from the rows that this process loaded.

    Args:
        local_batch: arrays [local batch, ...] with the rows of `local_batch_indices`, in their order.
        sharding: of the global batch.
        batch_size: of the global batch.
    """
    row_of_index = {index: row for row, index in enumerate(local_batch_indices(sharding, batch_size))}

    def to_global(values: np.ndarray) -> jax.Array:
        def shard(index):
            start, stop, _ = index[0].indices(batch_size)
            return values[row_of_index[start] : row_of_index[start] + stop - start]

        return jax.make_array_from_callback((batch_size, *values.shape[1:]), sharding, shard)

    return {name: to_global(values) for name, values in local_batch.items()}


def unbox(boxed: Any) -> Any:
    """Strip logical axis names off a tree; unlike Flax's own, adds no sharding constraints to abstract values."""
    is_box = lambda x: isinstance(x, meta.AxisMetadata)  # noqa: E731
    return jax.tree.map(lambda x: x.value if is_box(x) else x, boxed, is_leaf=is_box)


def jit_init(init: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Jit an initializer, which runs once: on a CPU it is compiled without optimizations, in half of the time.

    Args:
        init: function from keys and inputs to variables.
        options: further arguments of `jax.jit`, such as `out_shardings`.
    """
    if jax.default_backend() == "cpu":
        options["compiler_options"] = {
            "xla_backend_optimization_level": 0,
            "xla_llvm_disable_expensive_passes": True,
        }
    return jax.jit(init, **options)


def tree_shardings(boxed: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Map a tree of parameters with logical axis names (as `init` returns it) to shardings.

    Raises:
        UserError: the mesh axes do not divide a dimension of a tensor. Falling back to replication would hide it.
    """
    specs = logical_to_mesh(nn.get_partition_spec(boxed), LOGICAL_AXIS_RULES)
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, PartitionSpec)
    )
    flat_shapes = _flatten(unbox(boxed))
    flat_shardings = _flatten(shardings)
    problems = [
        problem
        for name, leaf in flat_shapes.items()
        if (problem := _indivisible(name, leaf.shape, flat_shardings[name]))
    ]
    if problems:
        raise UserError(f"The mesh does not divide the model: {'; '.join(problems)}. Change mesh.* or the sizes.")
    return shardings


def _flatten(tree: Tree) -> dict[str, Any]:
    return flatten_dict(tree, sep="/")


def _indivisible(name: str, shape: tuple[int, ...], sharding: NamedSharding) -> str | None:
    for size, axes in zip(shape, sharding.spec, strict=False):
        axes = (axes,) if isinstance(axes, str) else axes or ()
        shards = math.prod(sharding.mesh.shape[axis] for axis in axes)
        if size % shards:
            return f"{name} {shape} has {size}, not divisible by {'*'.join(axes)} = {shards}"
    return None


def describe_shardings(params: Tree, shardings: Tree) -> list[str]:
    """Return one line per tensor: name, shape, dtype, PartitionSpec, MiB on each device."""
    lines = []
    flat = _flatten(shardings)
    for name, leaf in sorted(_flatten(params).items()):
        local = math.prod(flat[name].shard_shape(leaf.shape)) * leaf.dtype.itemsize / 2**20
        lines.append(f"{name} {tuple(leaf.shape)} {leaf.dtype} {flat[name].spec} {local:.2f} MiB")
    return lines


def replicated_tensors(params: Tree, shardings: Tree) -> list[str]:
    """Return the names of tensors above 1 MiB that are replicated although the mesh could shard them."""
    flat = _flatten(shardings)
    return [
        name
        for name, leaf in sorted(_flatten(params).items())
        if leaf.size * leaf.dtype.itemsize > REPLICATED_LIMIT_BYTES
        and flat[name].mesh.size > 1
        and flat[name].shard_shape(leaf.shape) == tuple(leaf.shape)
    ]


def check_sharded(params: Tree, shardings: Tree) -> None:
    """Refuse shardings that replicate too much although the mesh could shard it.

    Raises:
        UserError: a tensor above 1 MiB, or tensors with more than 2 % of all parameters, are replicated.
    """
    flat = _flatten(shardings)
    leaves = _flatten(params)
    mesh = next(iter(flat.values())).mesh
    if all(mesh.shape[axis] == 1 for axis in ("fsdp", "tensor")):
        return
    large = replicated_tensors(params, shardings)
    if large:
        raise UserError(
            f"The sharding rules leave {', '.join(large)} replicated on every device; add a rule for their axes."
        )
    replicated = {
        name: leaf.size for name, leaf in leaves.items() if flat[name].shard_shape(leaf.shape) == tuple(leaf.shape)
    }
    total = sum(leaf.size for leaf in leaves.values())
    excess = sum(replicated.values())
    # In a model so small that 2 % are a few vectors, replication costs nothing.
    if excess > MAX_REPLICATED_FRACTION * total and excess * 4 > REPLICATED_LIMIT_BYTES:
        largest = sorted(replicated, key=lambda name: replicated[name], reverse=True)[:5]
        raise UserError(
            f"The sharding rules leave {excess / total:.1%} of the parameters replicated on every device, "
            f"at most {MAX_REPLICATED_FRACTION:.0%} may be: add rules for the axes of {', '.join(largest)}."
        )


def log_shardings(params: Tree, shardings: Tree) -> None:
    """Log the sharding of every tensor (debug level)."""
    for line in describe_shardings(params, shardings):
        logging.debug("shard %s", line)

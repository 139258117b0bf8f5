"""Meshes, and the one table from logical to mesh axes."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.core import meta
from flax.traverse_util import flatten_dict
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from seed_jax.errors import UserError

AXES = ("replica", "fsdp", "tensor")
BATCH_AXES = ("replica", "fsdp")

# Logical axis -> mesh axis. `embed` is every weight's model dimension: cut over fsdp, gathered where it is used.
# Activations have names of their own (`act_*`), because a weight and an activation of one size are cut differently.
RULES = (
    ("embed", "fsdp"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("vocab", "tensor"),
    ("adapter", ("tensor", "fsdp")),
    ("norm", None),
    ("layers", None),
    ("batch", BATCH_AXES),
    ("sequence", None),
    ("act_embed", None),
    ("act_heads", "tensor"),
    ("act_mlp", "tensor"),
    ("act_vocab", "tensor"),
)
# A parameter above this size must not lie whole on every device unless a rule says so.
WHOLE_LIMIT_BYTES = 1 << 20
WHOLE_SHARE = 0.02  # of all parameters that may lie whole on every device: norm scales and biases


def make_mesh(shape: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Build the mesh over all devices, with the slices of a multi-slice job along `replica`.

    Args:
        shape: size per axis name; one size may be -1, "what is left"; an axis left out has size 1.
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
        within, across = (sizes[0] // slices, *sizes[1:]), (slices, 1, 1)
        grid = mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_sizes(shape: Mapping[str, int], count: int) -> tuple[int, ...]:
    """Return the sizes of `AXES` over `count` devices, with -1 filled in."""
    unknown = sorted(set(shape) - set(AXES))
    if unknown:
        raise UserError(f"mesh.{unknown[0]} is not a mesh axis: expected {', '.join(AXES)}.")
    sizes = [int(shape.get(axis, 1)) for axis in AXES]
    described = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"The mesh {described} is not valid: sizes are positive, and at most one is -1.")
    if count % known or (-1 not in sizes and known != count):
        raise UserError(
            f"The mesh {described} does not fit {count} device(s): the product of mesh.replica, mesh.fsdp and "
            "mesh.tensor must equal the number of devices (one of them may be -1)."
        )
    return tuple(count // known if size == -1 else size for size in sizes)


def batch_shards(mesh: Mesh) -> int:
    """Return into how many parts a batch is cut."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Cut the leading axis over all data-parallel devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def local_rows(cut: NamedSharding, batch_size: int) -> list[int]:
    """Return the rows of a global batch that this process's devices hold.

    Where the tensor axis spans processes, several processes hold the same rows.
    """
    slices = cut.addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for (part,) in slices for row in range(*part.indices(batch_size))})


def place(rows: dict[str, np.ndarray], cut: NamedSharding, batch_size: int) -> dict[str, jax.Array]:
    """Lay this process's rows of a batch onto its devices."""
    first = {row: index for index, row in enumerate(local_rows(cut, batch_size))}

    def one(values: np.ndarray) -> jax.Array:
        shape = (batch_size, *values.shape[1:])

        def part(index):
            start, stop, _ = index[0].indices(batch_size)
            return values[first[start] : first[start] + stop - start]

        return jax.make_array_from_callback(shape, cut, part)

    return {name: one(values) for name, values in rows.items()}


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def unbox(boxed: Any) -> Any:
    """Strip logical names off a tree; unlike Flax's own, without placing sharding constraints on abstract values."""
    is_box = lambda x: isinstance(x, meta.AxisMetadata)  # noqa: E731
    return jax.tree.map(lambda x: x.value if is_box(x) else x, boxed, is_leaf=is_box)


def tree_shardings(boxed: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Map a tree of parameters with logical names (as `init` returns it) to shardings.

    An axis that its mesh axes do not divide is an error that names the tensor: a silent fallback would replicate it.
    """
    specs = nn.logical_to_mesh(nn.get_partition_spec(boxed), RULES)
    shapes = unbox(boxed)
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, PartitionSpec)
    )
    flat_shapes, flat_shardings = flatten_dict(shapes, sep="/"), flatten_dict(shardings, sep="/")
    problems = [p for name in flat_shapes if (p := _indivisible(name, flat_shapes[name].shape, flat_shardings[name]))]
    if problems:
        raise UserError(f"The mesh does not divide the model: {'; '.join(problems)}. Change mesh.* or the sizes.")
    return shardings


def _indivisible(name: str, shape: tuple[int, ...], sharding: NamedSharding) -> str | None:
    for size, axes in zip(shape, sharding.spec, strict=False):
        axes = (axes,) if isinstance(axes, str) else axes or ()
        parts = math.prod(sharding.mesh.shape[axis] for axis in axes)
        if size % parts:
            return f"{name} {shape} has {size}, not divisible by {'*'.join(axes)} = {parts}"
    return None


def describe(params: Any, shardings: Any) -> list[str]:
    """Return one line a tensor: name, shape, how it is cut, MiB on each device."""
    lines = []
    flat = flatten_dict(shardings, sep="/")
    for name, leaf in sorted(flatten_dict(params, sep="/").items()):
        local = math.prod(flat[name].shard_shape(leaf.shape)) * leaf.dtype.itemsize / 2**20
        lines.append(f"{name} {tuple(leaf.shape)} {leaf.dtype} {flat[name].spec} {local:.2f} MiB")
    return lines


def whole_tensors(params: Any, shardings: Any) -> list[str]:
    """Return the names of tensors above 1 MiB that every device would hold whole although the mesh could cut them."""
    flat = flatten_dict(shardings, sep="/")
    return [
        name
        for name, leaf in sorted(flatten_dict(params, sep="/").items())
        if leaf.size * leaf.dtype.itemsize > WHOLE_LIMIT_BYTES
        and flat[name].mesh.size > 1
        and flat[name].shard_shape(leaf.shape) == tuple(leaf.shape)
    ]


def check_cut(params: Any, shardings: Any) -> None:
    """Refuse a layout that keeps too much whole on every device although the mesh could cut it.

    Raises:
        UserError: a tensor above 1 MiB, or tensors with more than 2 % of all parameters, lie whole on every device.
    """
    flat, leaves = flatten_dict(shardings, sep="/"), flatten_dict(params, sep="/")
    mesh = next(iter(flat.values())).mesh
    if all(mesh.shape[axis] == 1 for axis in ("fsdp", "tensor")):
        return
    big = whole_tensors(params, shardings)
    if big:
        raise UserError(f"The sharding rules leave {', '.join(big)} whole on every device; add a rule for their axes.")
    whole = {
        name: leaf.size for name, leaf in leaves.items() if flat[name].shard_shape(leaf.shape) == tuple(leaf.shape)
    }
    total = sum(leaf.size for leaf in leaves.values())
    # Of a model so small that 2 % are some vectors, nothing is lost.
    if sum(whole.values()) > WHOLE_SHARE * total and sum(whole.values()) * 4 > WHOLE_LIMIT_BYTES:
        largest = sorted(whole, key=whole.get, reverse=True)[:5]
        raise UserError(
            f"The sharding rules leave {sum(whole.values()) / total:.1%} of the parameters whole on every device, "
            f"at most {WHOLE_SHARE:.0%} may be: name axes with rules for {', '.join(largest)}."
        )


def log_shardings(params: Any, shardings: Any) -> None:
    """Log the decision for every tensor."""
    for line in describe(params, shardings):
        logging.debug("shard %s", line)

"""Low-rank adapters (LoRA) as functions over parameter trees.

Adapters are a separate tree: `{path: {"a": [.., I, R], "b": [.., R, O]}}`, with the paths of the kernels they adapt. A
leading `layers` axis is kept, so that scanned layers have scanned adapters. The original uses rank 16, alpha 32 and
dropout 0.05 on all seven projections of a LLaMA block (spec D.1).

An adapter is applied in one of two ways. `delta` is the adapter's own output, with dropout on its input. Without
dropout, training multiplies by the folded kernel `W + scale * a @ b` (`folded_matmul`): on a TPU the separate products
of rank 16 use an eighth of the matrix units' lanes and write the wide result twice more, a fifth of a step.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.spmd import with_logical_constraint
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Key, UInt32

from seed_jax.errors import UserError
from seed_jax.models.config_io import from_dict
from seed_jax.models.nn import fsdp_matmul
from seed_jax.precision import Precision
from seed_jax.typing import ParamPath, Tree


@dataclasses.dataclass(frozen=True)
class LoraSpec:
    """Names of the projections that are adapted (a model's `lora_targets` by default), and sizes of the adapters."""

    targets: tuple[str, ...]
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05

    @property
    def scale(self) -> float:
        """Factor on the adapter's output."""
        return self.alpha / self.rank


def read_spec(settings: Any, where: str, targets: Iterable[str]) -> LoraSpec:
    """Read rank, alpha and dropout from the key `lora` of a model directory's `config.json`.

    Args:
        settings: value of the key.
        where: its origin, for messages.
        targets: names of the adapted projections.

    Raises:
        UserError: a value is missing or out of range.
    """
    if not isinstance(settings, dict):
        raise UserError(f"{where}: 'lora' holds a {type(settings).__name__}, expected an object.")
    return from_dict(LoraSpec, {**settings, "targets": list(targets)}, f"{where}, lora,")


def delta(
    x: Float[Array, "*B I"],
    a: Float[Array, "I R"],
    b: Float[Array, "R O"],
    spec: LoraSpec,
    *,
    rng: Key[Array, ""] | None = None,
    precision: Precision = Precision(),
) -> Float[Array, "*B O"]:
    """Return the adapter's output `scale * dropout(x) @ a @ b`; no dropout without `rng`."""
    if rng is not None:
        keep = 1.0 - spec.dropout
        x = jnp.where(keep_mask(rng, keep, x.shape), x / keep, 0).astype(x.dtype)
    low_rank = jnp.matmul(x, a.astype(x.dtype), precision=precision.matmul)
    return jnp.matmul(low_rank, b.astype(x.dtype), precision=precision.matmul) * spec.scale


def keep_mask(rng: Key[Array, ""], keep: float, shape: tuple[int, ...]) -> Bool[Array, "*S"]:
    """Return a random mask that is True with probability `keep`, from an integer hash of each element's index.

    The bits do not depend on how the mask is sharded. A third of the operations of `jax.random.bernoulli`, whose
    Threefry is what makes dropout expensive on TPUs; good enough for dropout, and for nothing else.
    """
    words = jax.random.key_data(rng).astype(jnp.uint32).reshape(-1)
    first = _mix(words[0] ^ _mix(words[-1] + np.uint32(0x9E3779B9)))
    second = _mix(first + np.uint32(0x9E3779B9))
    index = jnp.zeros((), jnp.uint32)  # of an element, modulo 2^32
    for axis, size in enumerate(shape):
        index = index * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return _mix(index ^ first, second) < np.uint32(min(keep * 2**32, 2**32 - 1))


def _mix(bits: UInt32[Array, "*S"], middle: UInt32[Array, ""] | int = 0) -> UInt32[Array, "*S"]:
    """Apply the finalizer of MurmurHash3, with `middle` between its two rounds."""
    bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B) ^ jnp.asarray(middle, jnp.uint32)
    bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


def folded_matmul(
    x: Float[Array, "*B I"],
    kernel: Float[Array | np.ndarray, "I O"],
    a: Float[Array, "I R"],
    b: Float[Array, "R O"],
    spec: LoraSpec,
    axes: fsdp_matmul.Axes,
    precision: Precision = Precision(),
) -> Float[Array, "*B O"]:
    """Return `x @ (kernel + scale * a @ b)`, which adds the adapter to the kernel's shard before it is all-gathered.

    Args:
        x: activations; the leading axis is the batch.
        kernel: the weight, in the dtype of its storage.
        a: the adapter's first matrix.
        b: the adapter's second matrix.
        spec: its scale.
        axes: logical axes of the kernel.
        precision: of the matmuls.
    """
    batch = fsdp_matmul.batch_axes(x.shape[0]) if x.ndim > 1 else ()
    kernel_spec = fsdp_matmul.weight_spec(axes, batch) if batch else PartitionSpec()
    if not any(kernel_spec):
        batch = ()
    y: Any = _folded_matmul(x, kernel, a, b, spec.scale, axes, batch, kernel_spec, precision.matmul)
    return checkpoint_name(y, fsdp_matmul.RESULT_NAME) if batch else y


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7, 8))
def _folded_matmul(x, kernel, a, b, scale, axes, batch_axes, kernel_spec, precision):
    folded = _fold(kernel, a, b, scale, axes, x.dtype, bool(batch_axes), precision)
    return jnp.matmul(x, folded, precision=precision)


def _fold(kernel, a, b, scale, axes, dtype, is_sharded, precision):
    """Return `kernel + scale * a @ b` in `dtype`, sharded like the kernel."""
    update = jnp.matmul(a.astype(dtype), b.astype(dtype), precision=precision, preferred_element_type=jnp.float32)
    folded = (kernel.astype(jnp.float32) + scale * update).astype(dtype)
    return with_logical_constraint(folded, axes) if is_sharded else folded


def _folded_matmul_forward(x, kernel, a, b, *options):
    return _folded_matmul(x, kernel, a, b, *options), (x, kernel, a, b)


def _folded_matmul_backward(scale, axes, batch_axes, kernel_spec, precision, residuals, cotangent):
    x, kernel, a, b = residuals
    cotangent = fsdp_matmul.fusion_barrier(cotangent)
    folded = _fold(kernel, a, b, scale, axes, x.dtype, bool(batch_axes), precision)
    matmul = functools.partial(jnp.matmul, precision=precision)
    contract_batch = functools.partial(_contract_batch, precision=precision)
    low_rank = matmul(x, a.astype(x.dtype))
    low_rank_gradient = (matmul(cotangent, b.astype(x.dtype).T) * scale).astype(x.dtype)
    # Removed by the compiler where the kernel is frozen.
    if batch_axes:
        kernel_gradient = fsdp_matmul.kernel_gradient(x, cotangent, batch_axes, kernel_spec, precision)
    else:
        kernel_gradient = contract_batch(x, cotangent)
    return (
        matmul(cotangent, folded.T),
        kernel_gradient.astype(kernel.dtype),
        contract_batch(x, low_rank_gradient).astype(a.dtype),
        (contract_batch(low_rank, cotangent) * scale).astype(b.dtype),
    )


def _contract_batch(x, y, precision):
    """Return `x^T y` over all leading axes, accumulated in float32."""
    leading = tuple(range(x.ndim - 1))
    dimensions = ((leading, leading), ((), ()))
    return jax.lax.dot_general(x, y, dimensions, precision=precision, preferred_element_type=jnp.float32)


_folded_matmul.defvjp(_folded_matmul_forward, _folded_matmul_backward)


def init(params: Tree, spec: LoraSpec, rng: Key[Array, ""]) -> Tree:
    """Create adapters for every targeted kernel: `a` uniform as PyTorch's Kaiming default, `b` zero.

    Args:
        params: nested dict; kernels are [..., I, O].
        spec: sizes and targets.
        rng: key; one is split off per kernel, in the order of the paths.
    """
    adapters = {}
    kernels: dict[ParamPath, Any] = flatten_dict(params)
    for path, kernel in sorted(kernels.items()):
        if path[-1] != "kernel" or path[-2] not in spec.targets:
            continue
        *lead, fan_in, fan_out = kernel.shape
        rng, key = jax.random.split(rng)
        bound = fan_in**-0.5  # kaiming_uniform with a = sqrt(5), peft's choice
        adapters[(*path[:-1], "a")] = jax.random.uniform(key, (*lead, fan_in, spec.rank), jnp.float32, -bound, bound)
        adapters[(*path[:-1], "b")] = jnp.zeros((*lead, spec.rank, fan_out), jnp.float32)
    return unflatten_dict(adapters)


def abstract(params: Tree, spec: LoraSpec) -> Tree:
    """Return the abstract adapters of `init`, boxed with logical axis names, for boxed abstract `params`."""
    adapters = {}
    kernels: dict[ParamPath, Any] = flatten_dict(params)
    for path, kernel in kernels.items():
        if path[-1] != "kernel" or path[-2] not in spec.targets:
            continue
        *lead, fan_in, fan_out = kernel.value.shape
        *lead_axes, axis_in, axis_out = kernel.names
        # The rank is too small to shard; so the other dimension is sharded over all devices.
        axis_in, axis_out = (name if name == "embed" else "adapter" for name in (axis_in, axis_out))
        for leaf, shape, axes in (
            ("a", (*lead, fan_in, spec.rank), (*lead_axes, axis_in, None)),
            ("b", (*lead, spec.rank, fan_out), (*lead_axes, None, axis_out)),
        ):
            adapters[(*path[:-1], leaf)] = nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), axes)
    return unflatten_dict(adapters)


def merge(params: Tree, adapters: Tree, spec: LoraSpec) -> Tree:
    """Return `params` with `scale * a @ b` added (in float32) to every adapted kernel."""
    merged: dict[ParamPath, Any] = flatten_dict(params)
    flat: dict[ParamPath, Any] = flatten_dict(adapters)
    for path in [path[:-1] for path in flat if path[-1] == "a"]:
        kernel = merged[(*path, "kernel")]
        update = jnp.matmul(flat[(*path, "a")], flat[(*path, "b")], precision="highest") * spec.scale
        merged[(*path, "kernel")] = (kernel.astype(jnp.float32) + update).astype(kernel.dtype)
    return unflatten_dict(merged)

"""Kernels in 8 or 4 bits: whole numbers with a scale for each output, or for each output and group of inputs.

`Dense` and LLaMA's head use what `quantize` made in place of a kernel: `kernel_q` and `kernel_scale`. Only the stored
weights are rounded; products and sums are those of the compute format.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int8, UInt8

from seed_jax.errors import UserError
from seed_jax.precision import Precision

VALUES, SCALE = "kernel_q", "kernel_scale"
Integers = Int8[Array, "I O"] | UInt8[Array, "P O"]  # of 8 bits, or pairs of 4
# On a CPU a kernel is unpacked in parts of so many numbers, which stay in the cache: whole ones would be written to
# memory and read again, which is slower than float32 to begin with.
_PART = 1 << 19
_MANY_ROWS = 64  # from here on, those of a prompt, unpacking a kernel is cheap beside multiplying by it


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How a kernel is rounded.

    Attributes:
        bits: 8 or 4, symmetric around zero: -127 to 127 or -7 to 7.
        group: inputs that share an output's scale; None: all of them.
    """

    bits: int
    group: int | None = None

    @property
    def largest(self) -> int:
        return 2 ** (self.bits - 1) - 1

    def groups(self, inputs: int) -> int:
        """Return into how many groups inputs fall: one where the group's size does not divide them."""
        return 1 if self.group is None or inputs % self.group else inputs // self.group

    def shapes(self, inputs: int, outputs: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return what `quantize` makes of a kernel; two numbers of 4 bits share a byte."""
        rows, kind = (inputs, np.int8) if self.bits == 8 else (inputs // 2, np.uint8)
        return {
            VALUES: jax.ShapeDtypeStruct((rows, outputs), kind),
            SCALE: jax.ShapeDtypeStruct((self.groups(inputs), outputs), np.float32),
        }


SCHEMES = {"int8": Scheme(8), "int4": Scheme(4, group=64)}


def scheme(name: str) -> Scheme:
    if name not in SCHEMES:
        raise UserError(f"Unknown quantisation {name!r}: expected one of {', '.join(SCHEMES)}.")
    return SCHEMES[name]


def quantize(kernel: Float[np.ndarray, "*L I O"], how: Scheme) -> dict[str, np.ndarray]:
    """Round a kernel on the host; the largest error of a weight is half its scale."""
    *lead, inputs, outputs = kernel.shape
    grouped = np.asarray(kernel, np.float32).reshape(*lead, how.groups(inputs), -1, outputs)
    scale = np.abs(grouped).max(axis=-2) / how.largest
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    values = np.rint(grouped / scale[..., None, :]).astype(np.int8)
    if how.bits == 4:
        if inputs % 2:
            raise UserError(f"A kernel of {inputs} inputs cannot be rounded to 4 bits: their number must be even.")
        # The first half of a group in the lower, the second in the higher halves of bytes, each with 8 added.
        low, high = np.split(values + 8, 2, axis=-2)
        values = (low | (high << 4)).astype(np.uint8)
    return {VALUES: values.reshape(*lead, -1, outputs), SCALE: scale}


def dequantize(values: Integers, scale: Float[Array, "G O"], dtype: np.dtype) -> Float[Array, "I O"]:
    """Undo `quantize` up to its rounding."""
    grouped = values.reshape(scale.shape[0], -1, values.shape[1])
    if values.dtype == jnp.uint8:
        halves = [(grouped & 15).astype(jnp.int8), (grouped >> 4).astype(jnp.int8)]
        grouped = jnp.concatenate(halves, axis=1) - 8
    return (grouped.astype(dtype) * scale.astype(dtype)[:, None]).reshape(-1, values.shape[1])


def matmul(
    x: Float[Array, "*B I"], values: Integers, scale: Float[Array, "G O"], precision: Precision
) -> Float[Array, "*B O"]:
    """Multiply by a rounded kernel; the sums are float32."""
    # Else the compiler, seeing that a decoding loop does not change the kernels, would unpack all of them before it.
    x, values, scale = jax.lax.optimization_barrier((x, values, scale))
    return jax.lax.platform_dependent(
        x,
        values,
        scale,
        cpu=_on_cpu,
        default=lambda x, values, scale: _at_once(x, values, scale, precision),
    )


def product(module: nn.Module, x: Float[Array, "*B I"]) -> Float[Array, "*B O"] | None:
    """Multiply by the rounded kernel among a module's parameters; None where there is none."""
    if not module.has_variable("params", VALUES):
        return None
    values, scale = (module.get_variable("params", name) for name in (VALUES, SCALE))
    return matmul(x, values, scale, module.precision)


def _at_once(x, values, scale, precision: Precision):
    """Leave it to the compiler to unpack the kernel on its way into the product."""
    how = {"precision": precision.matmul, "preferred_element_type": jnp.float32}
    if len(scale) == 1 and values.dtype == jnp.int8:
        return jnp.matmul(x, values.astype(x.dtype), **how) * scale.reshape((1,) * (x.ndim - 1) + (-1,))
    return jnp.matmul(x, dequantize(values, scale, x.dtype), **how)


def _on_cpu(x, values, scale):
    """Unpack as much of the kernel at a time as is best for so many rows."""
    inputs, outputs = x.shape[-1], values.shape[1]
    rows = x.reshape(-1, inputs).astype(jnp.float32)
    width = max(n for n in range(1, outputs + 1) if outputs % n == 0 and (n == 1 or inputs * n <= _PART))
    if width == outputs or len(rows) >= _MANY_ROWS:
        y = _whole(rows, values, scale)
    else:
        y = _in_parts(rows, values, scale, width)
    return y.reshape(*x.shape[:-1], outputs)


def _whole(rows, values, scale):
    # Zero, but known only when the rows are: else the kernels of all layers would be unpacked before the first product.
    zero = jnp.minimum(jnp.nan_to_num(jnp.abs(rows[0, 0])), 0.0)
    return jnp.matmul(rows, dequantize(values, scale + zero, rows.dtype), precision=jax.lax.Precision.HIGHEST)


def _in_parts(rows, values, scale, width: int):
    def part(start):
        kernel = jax.lax.dynamic_slice_in_dim(values, start, width, axis=1)
        scales = jax.lax.dynamic_slice_in_dim(scale, start, width, axis=1)
        return jnp.matmul(rows, dequantize(kernel, scales, rows.dtype), precision=jax.lax.Precision.HIGHEST)

    starts = jnp.arange(0, values.shape[1], width)
    return jnp.moveaxis(jax.lax.map(part, starts), 0, 1).reshape(len(rows), values.shape[1])


def abstract(params: dict[str, Any], choose: Callable[[tuple[str, ...]], Scheme | None]) -> dict[str, Any]:
    """Return the shapes of parameters (abstract ones too) whose kernels would be rounded as `choose` says."""
    flat = {}
    for path, leaf in flatten_dict(params).items():
        how = choose(path)
        parts = how.shapes(*leaf.shape[-2:]) if how else {path[-1]: leaf}
        for name, part in parts.items():
            lead = leaf.shape[:-2] if how else ()
            flat[(*path[:-1], name)] = jax.ShapeDtypeStruct((*lead, *part.shape), part.dtype)
    return unflatten_dict(flat)


def boxed_like(params: dict[str, Any], boxed: dict[str, Any]) -> dict[str, Any]:
    """Return the logical axes of rounded parameters, for a model's own `boxed` ones: those of the kernels.

    A scale is cut like its kernel's outputs; the groups of inputs are not cut.
    """
    names = flatten_dict(boxed)
    result = {}
    for path, leaf in flatten_dict(params).items():
        own = names.get(path) or names[(*path[:-1], "kernel")]
        axes = (*own.names[:-2], None, own.names[-1]) if path[-1] == SCALE else own.names
        result[path] = nn.LogicallyPartitioned(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), axes)
    return unflatten_dict(result)

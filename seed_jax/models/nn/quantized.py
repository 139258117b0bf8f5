"""Weight-only quantization of kernels to 8 or 4 bits, with a scale per output or per output and group of inputs.

`Dense` and LLaMA's head use the arrays that `quantize` makes in place of a kernel: `kernel_q` and `kernel_scale`. Only
the stored weights are quantized; matmuls run in the compute dtype and accumulate in float32.
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
from seed_jax.typing import ParamPath, Tree

VALUES, SCALE = "kernel_q", "kernel_scale"
Integers = Int8[Array, "I O"] | UInt8[Array, "P O"]  # int8, or pairs of 4-bit integers in a byte
# On a CPU a kernel is dequantized in blocks of this many values, which stay in the cache: a whole one would be written
# to memory and read again, slower than a float32 kernel.
BLOCK_VALUES = 1 << 19
_MANY_TOKENS = 64  # from this many tokens on (prefill), dequantizing is cheap compared with the matmul


@dataclasses.dataclass(frozen=True)
class QuantizationScheme:
    """How a kernel is quantized.

    Attributes:
        bits: 8 or 4, symmetric around zero: -127 to 127 or -7 to 7.
        group: number of inputs that share an output's scale; None: all of them.
    """

    bits: int
    group: int | None = None

    @property
    def largest(self) -> int:
        """The largest integer."""
        return 2 ** (self.bits - 1) - 1

    def groups(self, inputs: int) -> int:
        """Return the number of groups of inputs: one if the group size does not divide them."""
        return 1 if self.group is None or inputs % self.group else inputs // self.group

    def shapes(self, inputs: int, outputs: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the abstract arrays that `quantize` makes of a kernel; two 4-bit integers share a byte."""
        rows, dtype = (inputs, np.int8) if self.bits == 8 else (inputs // 2, np.uint8)
        return {
            VALUES: jax.ShapeDtypeStruct((rows, outputs), dtype),
            SCALE: jax.ShapeDtypeStruct((self.groups(inputs), outputs), np.float32),
        }


SCHEMES = {"int8": QuantizationScheme(8), "int4": QuantizationScheme(4, group=64)}


def get_scheme(name: str) -> QuantizationScheme:
    """Return the scheme called `name`.

    Raises:
        UserError: there is none of that name.
    """
    if name not in SCHEMES:
        raise UserError(f"Unknown quantization {name!r}: expected one of {', '.join(SCHEMES)}.")
    return SCHEMES[name]


def quantize(kernel: Float[np.ndarray, "*L I O"], scheme: QuantizationScheme) -> dict[str, np.ndarray]:
    """Quantize a kernel on the host; the largest error of a weight is half its scale.

    Returns:
        `VALUES`, int8 [*L, I, O] or uint8 [*L, I / 2, O], and `SCALE`, float32 [*L, groups, O].

    Raises:
        UserError: the kernel has an odd number of inputs, which 4 bits cannot pack.
    """
    *lead, inputs, outputs = kernel.shape
    grouped = np.asarray(kernel, np.float32).reshape(*lead, scheme.groups(inputs), -1, outputs)
    scale = np.abs(grouped).max(axis=-2) / scheme.largest
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    values = np.rint(grouped / scale[..., None, :]).astype(np.int8)
    if scheme.bits == 4:
        if inputs % 2:
            raise UserError(f"A kernel of {inputs} inputs cannot be quantized to 4 bits: expected an even number.")
        # The first half of a group in the low, the second in the high nibbles, each with offset 8.
        low, high = np.split(values + 8, 2, axis=-2)
        values = (low | (high << 4)).astype(np.uint8)
    return {VALUES: values.reshape(*lead, -1, outputs), SCALE: scale}


def dequantize(values: Integers, scale: Float[Array, "G O"], dtype: np.dtype) -> Float[Array, "I O"]:
    """Return the kernel that `quantize` approximated."""
    grouped = values.reshape(scale.shape[0], -1, values.shape[1])
    if values.dtype == jnp.uint8:
        halves = [(grouped & 15).astype(jnp.int8), (grouped >> 4).astype(jnp.int8)]
        grouped = jnp.concatenate(halves, axis=1) - 8
    return (grouped.astype(dtype) * scale.astype(dtype)[:, None]).reshape(-1, values.shape[1])


def matmul(
    x: Float[Array, "*B I"], values: Integers, scale: Float[Array, "G O"], precision: Precision
) -> Float[Array, "*B O"]:
    """Multiply by a quantized kernel; the result is float32."""
    # Without a barrier, the compiler hoists the dequantization of all kernels out of a decoding loop.
    x, values, scale = jax.lax.optimization_barrier((x, values, scale))
    return jax.lax.platform_dependent(
        x,
        values,
        scale,
        cpu=_matmul_on_cpu,
        default=lambda x, values, scale: fused_matmul(x, values, scale, precision),
    )


def quantized_matmul(module: nn.Module, x: Float[Array, "*B I"]) -> Float[Array, "*B O"] | None:
    """Multiply by the quantized kernel among a module's parameters; None if it has none."""
    if not module.has_variable("params", VALUES):
        return None
    values, scale = (module.get_variable("params", name) for name in (VALUES, SCALE))
    return matmul(x, values, scale, getattr(module, "precision", Precision()))


def fused_matmul(
    x: Float[Array, "*B I"], values: Integers, scale: Float[Array, "G O"], precision: Precision
) -> Float[Array, "*B O"]:
    """Multiply by a quantized kernel on TPUs and GPUs, whose compilers fuse the dequantization into the matmul."""
    options = {"precision": precision.matmul, "preferred_element_type": jnp.float32}
    if len(scale) == 1 and values.dtype == jnp.int8:
        return jnp.matmul(x, values.astype(x.dtype), **options) * scale.reshape((1,) * (x.ndim - 1) + (-1,))
    return jnp.matmul(x, dequantize(values, scale, x.dtype), **options)


def _matmul_on_cpu(x, values, scale):
    """Dequantize the kernel whole or in blocks, whichever is faster for the number of tokens."""
    inputs, outputs = x.shape[-1], values.shape[1]
    tokens = x.reshape(-1, inputs).astype(jnp.float32)
    width = max(n for n in range(1, outputs + 1) if outputs % n == 0 and (n == 1 or inputs * n <= BLOCK_VALUES))
    if width == outputs or len(tokens) >= _MANY_TOKENS:
        y = _matmul_whole(tokens, values, scale)
    else:
        y = _matmul_in_blocks(tokens, values, scale, width)
    return y.reshape(*x.shape[:-1], outputs)


def _matmul_whole(tokens, values, scale):
    # A zero that depends on the activations: else the kernels of all layers would be dequantized before the first
    # matmul.
    zero = jnp.minimum(jnp.nan_to_num(jnp.abs(tokens[0, 0])), 0.0)
    return jnp.matmul(tokens, dequantize(values, scale + zero, tokens.dtype), precision=jax.lax.Precision.HIGHEST)


def _matmul_in_blocks(tokens, values, scale, width: int):
    def block(start):
        kernel = jax.lax.dynamic_slice_in_dim(values, start, width, axis=1)
        scales = jax.lax.dynamic_slice_in_dim(scale, start, width, axis=1)
        return jnp.matmul(tokens, dequantize(kernel, scales, tokens.dtype), precision=jax.lax.Precision.HIGHEST)

    starts = jnp.arange(0, values.shape[1], width)
    return jnp.moveaxis(jax.lax.map(block, starts), 0, 1).reshape(len(tokens), values.shape[1])


def abstract(params: Tree, choose: Callable[[ParamPath], QuantizationScheme | None]) -> Tree:
    """Return the abstract parameters after quantization.

    Args:
        params: parameters, possibly abstract.
        choose: path of a parameter -> its scheme; None leaves it as it is.
    """
    flat: dict[ParamPath, Any] = flatten_dict(params)
    quantized = {}
    for path, leaf in flat.items():
        scheme = choose(path)
        lead = leaf.shape[:-2] if scheme else ()
        arrays = scheme.shapes(*leaf.shape[-2:]) if scheme else {path[-1]: leaf}
        for name, array in arrays.items():
            quantized[(*path[:-1], name)] = jax.ShapeDtypeStruct((*lead, *array.shape), array.dtype)
    return unflatten_dict(quantized)


def logical_axes_like(params: Tree, boxed: Tree) -> Tree:
    """Return abstract quantized parameters boxed with the logical axes of a model's own boxed parameters.

    A scale is sharded like its kernel's outputs; the groups of inputs are not sharded.
    """
    flat: dict[ParamPath, Any] = flatten_dict(params)
    flat_boxed: dict[ParamPath, Any] = flatten_dict(boxed)
    result = {}
    for path, leaf in flat.items():
        box = flat_boxed.get(path) or flat_boxed[(*path[:-1], "kernel")]
        axes = (*box.names[:-2], None, box.names[-1]) if path[-1] == SCALE else box.names
        result[path] = nn.LogicallyPartitioned(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), axes)
    return unflatten_dict(result)

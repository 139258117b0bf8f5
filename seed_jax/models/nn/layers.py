"""Layers and activations that several models share.

Parameters carry logical axis names (`embed`, `mlp`, `heads`, `vocab`, ...), which `seed_jax.sharding` maps to mesh
axes. A 2-D kernel is stored (in, out), the transpose of PyTorch's.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from seed_jax.models.nn import fsdp_matmul, quantized
from seed_jax.models.nn.lora import LoraSpec, delta, folded_matmul
from seed_jax.precision import Precision

Axes = tuple[str | None, ...]


def gelu(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Apply the exact (erf) GELU; the tanh approximation visibly changes SEED's outputs."""
    return jax.nn.gelu(x, approximate=False)


def quick_gelu(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Apply x * sigmoid(1.702 x), the GELU of OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


# The activations that a CLIP encoder's config can name.
ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu}


def param(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...], axes: Axes, dtype: jnp.dtype) -> Array:
    """Create or look up a parameter of `module`.

    Args:
        module: the module, inside `setup` or a compact method.
        name: of the parameter.
        init: initializer (key, shape, dtype).
        shape: of the parameter.
        axes: logical axis name per dimension.
        dtype: of the initial value.
    """
    value: Any = module.param(name, nn.with_logical_partitioning(init, axes), shape, dtype)
    return jnp.asarray(value)


def align_last(vector: Float[Array | np.ndarray, " D"], x: Float[Array, "*B D"]) -> Float[Array | np.ndarray, "... D"]:
    """Give `vector` leading axes of size 1 so that it broadcasts over `x` without implicit rank promotion."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


class Dense(nn.Module):
    """Linear layer with an optional bias and an optional LoRA adapter.

    The adapter is in the variable collection `lora` under the same path as the kernel: passing that collection adapts
    the model, and leaving it out gives the base model.

    Attributes:
        features: output size.
        axes: logical axes of the kernel.
        lora: sizes of the adapter; needed where the collection `lora` is passed.
    """

    features: int
    axes: Axes = ("embed", "mlp")
    use_bias: bool = True
    precision: Precision = Precision()
    kernel_init: Callable = nn.initializers.normal(0.02)
    lora: LoraSpec | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*B I"], *, deterministic: bool = True) -> Float[Array, "*B O"]:
        dtype = self.precision.param_dtype
        x = x.astype(self.precision.compute_dtype)
        adapter = None
        if self.lora is not None and self.has_variable("lora", "a"):
            adapter = self.get_variable("lora", "a"), self.get_variable("lora", "b")
        y = quantized.quantized_matmul(self, x)  # if the parameters hold a quantized kernel
        if y is None:
            kernel = param(self, "kernel", self.kernel_init, (x.shape[-1], self.features), self.axes, dtype)
            # Only in training: elsewhere the few tokens of a call do not pay for folding.
            if self.lora is not None and adapter is not None and not deterministic and not self.lora.dropout:
                y = folded_matmul(x, kernel, *adapter, self.lora, self.axes, self.precision)
                adapter = None
            else:
                y = fsdp_matmul.fsdp_matmul(x, kernel, self.axes, self.precision.matmul)
        y = y.astype(x.dtype)
        if self.use_bias:
            bias = param(self, "bias", nn.initializers.zeros, (self.features,), self.axes[1:], dtype)
            y = y + align_last(bias.astype(y.dtype), y)
        if self.lora is not None and adapter is not None:
            rng = None if deterministic or not self.lora.dropout else self.make_rng("dropout")
            y = y + delta(x, *adapter, self.lora, rng=rng, precision=self.precision)
        return y


class LayerNorm(nn.Module):
    """Layer normalization over the last axis in float32; returns the compute dtype."""

    epsilon: float
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        dtype = self.precision.param_dtype
        scale = param(self, "scale", nn.initializers.ones, (x.shape[-1],), ("norm",), dtype)
        bias = param(self, "bias", nn.initializers.zeros, (x.shape[-1],), ("norm",), dtype)
        x = x.astype(jnp.float32)
        mean = x.mean(-1, keepdims=True)
        # Two passes: E[x^2] - E[x]^2 cancels badly when |mean| >> std, which happens in ViT-g's residual stream.
        variance = jnp.square(x - mean).mean(-1, keepdims=True)
        y = (x - mean) * jax.lax.rsqrt(variance + self.epsilon)
        scale, bias = (align_last(value.astype(jnp.float32), y) for value in (scale, bias))
        return (y * scale + bias).astype(self.precision.compute_dtype)


class Mlp(nn.Module):
    """Two-layer perceptron: linear, activation, linear."""

    hidden: int
    features: int
    activation: Callable = gelu
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        x = self.activation(Dense(self.hidden, ("embed", "mlp"), precision=self.precision, name="fc1")(x))
        return Dense(self.features, ("mlp", "embed"), precision=self.precision, name="fc2")(x)


class RMSNorm(nn.Module):
    """RMS normalization as in LLaMA: statistics and normalized values in float32; returns the compute dtype."""

    epsilon: float
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        scale = param(self, "scale", nn.initializers.ones, (x.shape[-1],), ("norm",), self.precision.param_dtype)
        x = x.astype(jnp.float32)
        y = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
        # The original casts to the compute dtype before it scales (spec I.A.26). A pair of casts would do the same,
        # but XLA may remove it.
        dtype_info = jnp.finfo(self.precision.compute_dtype)
        y = jax.lax.reduce_precision(y, dtype_info.nexp, dtype_info.nmant)
        return (y * align_last(scale.astype(jnp.float32), y)).astype(self.precision.compute_dtype)

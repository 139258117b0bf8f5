"""Layers that several models share.

Parameters carry logical axis names (`embed`, `mlp`, `heads`, `vocab`, ...), which `seed_jax.sharding` maps to mesh
axes. A 2-D kernel is stored (in, out), the transpose of PyTorch's.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from seed_jax.models.nn import fsdp_matmul, quantized
from seed_jax.models.nn.lora import LoraSpec, delta
from seed_jax.precision import Precision

Axes = tuple[str | None, ...]


def gelu(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Apply the exact (erf) GELU; the tanh form visibly moves SEED's outputs."""
    return jax.nn.gelu(x, approximate=False)


def align_last(vector: Float[Array | np.ndarray, " D"], x: Float[Array, "*B D"]) -> Float[Array | np.ndarray, "... D"]:
    """Give `vector` leading axes of size 1 so that it broadcasts over `x` without implicit rank promotion."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


class Dense(nn.Module):
    """Multiply by a 2-D kernel, add a bias, and add a low-rank adapter where one is given.

    The adapter lives in the variable collection `lora` under the same path as the kernel, so that a model is
    adapted by passing one more collection and un-adapted by leaving it out.
    """

    features: int
    axes: Axes = ("embed", "mlp")
    use_bias: bool = True
    precision: Precision = Precision()
    kernel_init: Callable = nn.initializers.normal(0.02)
    lora: LoraSpec | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*B I"], *, deterministic: bool = True) -> Float[Array, "*B O"]:
        shape = (x.shape[-1], self.features)
        x = x.astype(self.precision.compute_dtype)
        y = quantized.product(self, x)  # where the parameters hold a rounded kernel
        if y is None:
            init = nn.with_logical_partitioning(self.kernel_init, self.axes)
            kernel = self.param("kernel", init, shape, self.precision.param_dtype)
            y = fsdp_matmul.product(x, kernel, self.axes, self.precision.matmul)
        y = y.astype(x.dtype)
        if self.use_bias:
            bias_init = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
            bias = self.param("bias", bias_init, shape[1:], self.precision.param_dtype)
            y = y + align_last(bias.astype(y.dtype), y)
        if self.lora is not None and self.has_variable("lora", "a"):
            rng = None if deterministic or not self.lora.dropout else self.make_rng("dropout")
            a, b = self.get_variable("lora", "a"), self.get_variable("lora", "b")
            y = y + delta(x, a, b, self.lora, rng=rng, precision=self.precision)
        return y


class LayerNorm(nn.Module):
    """Normalise over the last axis in float32 and return the compute dtype."""

    epsilon: float
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        shape, dtype = (x.shape[-1],), self.precision.param_dtype
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, ("norm",)), shape, dtype)
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)), shape, dtype)
        x = x.astype(jnp.float32)
        mean = x.mean(-1, keepdims=True)
        # Two passes: E[x^2] - E[x]^2 cancels badly when |mean| >> std, which ViT-g's residual stream reaches.
        variance = jnp.square(x - mean).mean(-1, keepdims=True)
        y = (x - mean) * jax.lax.rsqrt(variance + self.epsilon)
        scale, bias = (align_last(v.astype(jnp.float32), y) for v in (scale, bias))
        return (y * scale + bias).astype(self.precision.compute_dtype)


class Mlp(nn.Module):
    """Widen, apply the activation, narrow."""

    hidden: int
    features: int
    activation: Callable = gelu
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        x = self.activation(Dense(self.hidden, ("embed", "mlp"), precision=self.precision, name="fc1")(x))
        return Dense(self.features, ("mlp", "embed"), precision=self.precision, name="fc2")(x)


class RMSNorm(nn.Module):
    """Scale to unit root mean square, as LLaMA does: statistics of the input in float32, rounded only then."""

    epsilon: float
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        init = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        scale = self.param("scale", init, (x.shape[-1],), self.precision.param_dtype)
        x = x.astype(jnp.float32)
        y = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
        # The original rounds to the compute dtype before it scales (spec I.A.26). A pair of casts would say the same,
        # but XLA may take it away.
        kept = jnp.finfo(self.precision.compute_dtype)
        y = jax.lax.reduce_precision(y, kept.nexp, kept.nmant)
        return (y * align_last(scale.astype(jnp.float32), y)).astype(self.precision.compute_dtype)

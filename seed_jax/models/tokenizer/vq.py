"""Vector quantisation with a plain codebook (spec A.5)."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

CODEBOOK_WEIGHT = 0.25


@flax.struct.dataclass
class Quantized:
    """Codes of a batch of vectors.

    `loss` is the mean over a vector's elements; its mean over all vectors is the original's loss.
    """

    codes: Int[Array, "B Q"]
    vectors: Float[Array, "B Q C"]  # straight-through: forward value of the code, gradient of the input
    loss: Float[Array, "B Q"]


def squared_distances(x: Float[Array, "B Q C"], codebook: Float[Array | np.ndarray, "K C"]) -> Float[Array, "B Q K"]:
    """Return |x|^2 + |e|^2 - 2 x.e in float32, whatever comes in."""
    x, codebook = x.astype(jnp.float32), jnp.asarray(codebook, jnp.float32)
    products = jnp.einsum("bqc,kc->bqk", x, codebook, precision=jax.lax.Precision.HIGHEST)
    return jnp.square(x).sum(-1, keepdims=True) + jnp.square(codebook).sum(-1)[None, None] - 2 * products


def lookup(codes: Int[Array, "B Q"], codebook: Float[Array | np.ndarray, "K C"]) -> Float[Array, "B Q C"]:
    """Return the codes' vectors; the caller answers for codes within 0..K-1."""
    return jnp.asarray(codebook)[codes]


def quantize(x: Float[Array, "B Q C"], codebook: Float[Array | np.ndarray, "K C"]) -> Quantized:
    """Assign each vector to its nearest code (squared L2, ties to the lowest index).

    The loss keeps the original's legacy form: the commitment of `x` to its code has weight 1, the pull of the code
    towards `x` weight 0.25, the reverse of the VQ-VAE paper.
    """
    # Distances in float32: a rounding tie in bfloat16 changes the code that is stored for ever.
    x = x.astype(jnp.float32)
    codes = jnp.argmin(squared_distances(x, codebook), axis=-1).astype(jnp.int32)
    chosen = lookup(codes, codebook.astype(jnp.float32))
    commitment = jnp.square(jax.lax.stop_gradient(chosen) - x).mean(-1)
    pull = jnp.square(chosen - jax.lax.stop_gradient(x)).mean(-1)
    vectors = x + jax.lax.stop_gradient(chosen - x)
    return Quantized(codes=codes, vectors=vectors, loss=commitment + CODEBOOK_WEIGHT * pull)

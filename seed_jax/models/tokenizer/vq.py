"""Vector quantization with a plain codebook (spec A.5)."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

CODEBOOK_LOSS_WEIGHT = 0.25


@flax.struct.dataclass
class QuantizerOutput:
    """Codes of a batch of vectors.

    `loss` is the mean over a vector's elements; its mean over all vectors is the original's loss.
    """

    codes: Int[Array, "B Q"]
    vectors: Float[Array, "B Q C"]  # straight-through: value of the code, gradient of the input
    loss: Float[Array, "B Q"]


def squared_distances(x: Float[Array, "B Q C"], codebook: Float[Array | np.ndarray, "K C"]) -> Float[Array, "B Q K"]:
    """Return |x|^2 + |e|^2 - 2 x.e in float32, whatever the dtype of the inputs."""
    x, codebook = x.astype(jnp.float32), jnp.asarray(codebook, jnp.float32)
    products = jnp.einsum("bqc,kc->bqk", x, codebook, precision=jax.lax.Precision.HIGHEST)
    return jnp.square(x).sum(-1, keepdims=True) + jnp.square(codebook).sum(-1)[None, None] - 2 * products


def lookup(codes: Int[Array, "B Q"], codebook: Float[Array | np.ndarray, "K C"]) -> Float[Array, "B Q C"]:
    """Return the vectors of the codes, which must be in 0..K - 1 (not checked)."""
    return jnp.asarray(codebook)[codes]


def quantize(x: Float[Array, "B Q C"], codebook: Float[Array | np.ndarray, "K C"]) -> QuantizerOutput:
    """Assign each vector to its nearest code (squared L2 distance, ties to the lowest index).

    The loss has the original's legacy form: weight 1 on the commitment of `x` to its code and 0.25 on the codebook
    loss, the reverse of the VQ-VAE paper.
    """
    # Distances in float32: in bfloat16, rounding ties would change the codes that are stored in datasets.
    x = x.astype(jnp.float32)
    codes = jnp.argmin(squared_distances(x, codebook), axis=-1).astype(jnp.int32)
    nearest = lookup(codes, codebook.astype(jnp.float32))
    commitment_loss = jnp.square(jax.lax.stop_gradient(nearest) - x).mean(-1)
    codebook_loss = jnp.square(nearest - jax.lax.stop_gradient(x)).mean(-1)
    vectors = x + jax.lax.stop_gradient(nearest - x)
    return QuantizerOutput(codes, vectors, loss=commitment_loss + CODEBOOK_LOSS_WEIGHT * codebook_loss)

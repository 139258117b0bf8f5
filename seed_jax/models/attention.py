"""The one entry point for attention."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from seed_jax.precision import Precision

QUERY_BLOCK = 512  # queries a block of the "chunked" implementation holds


def segment_mask(query_segments: Int[Array, "B T"], key_segments: Int[Array, "B S"]) -> Bool[Array, "B 1 T S"]:
    """Let a position see the positions of its own segment only; segment 0 is padding and sees itself."""
    return (query_segments[:, :, None] == key_segments[:, None, :])[:, None]


def causal_mask(length: int) -> Bool[Array, "1 1 T T"]:
    """Let position i see positions 0..i."""
    return jnp.tril(jnp.ones((length, length), bool))[None, None]


def _attend_with_dropout(q, k, v, mask, scale, precision, rate, rng):
    """Do what the fused call does, dropping attention weights: no kernel of JAX's public interface offers that."""
    scores = jnp.einsum("bthd,bshd->bhts", q, k, precision=precision.matmul, preferred_element_type=jnp.float32)
    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1)
    kept = jax.random.bernoulli(rng, 1.0 - rate, weights.shape)
    weights = jnp.where(kept, weights / (1.0 - rate), 0.0).astype(v.dtype)
    return jnp.einsum("bhts,bshd->bthd", weights, v, precision=precision.matmul)


def attend(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    *,
    mask: Bool[Array, "#B #H T S"] | None = None,
    causal: bool = False,
    segment_ids: Int[Array, "B T"] | None = None,
    scale: float | None = None,
    precision: Precision = Precision(),
    implementation: str = "xla",
    dropout: float = 0.0,
    dropout_rng: Key[Array, ""] | None = None,
) -> Float[Array, "B T H D"]:
    """Weigh `v` by the softmax (in float32) of scaled products of `q` and `k`.

    Args:
        mask: True where a query may see a key. Combined with `causal` and `segment_ids`.
        segment_ids: packed sequences; a position sees only its own segment (self-attention: T == S).
        scale: factor on the scores, by default D ** -0.5.
        implementation: "xla" (any device), "cudnn" (GPU, 16-bit) or "chunked" (any device; a block of queries at a
            time, so that T x S scores never exist at once, in the backward pass neither).
        dropout: share of the attention weights dropped where `dropout_rng` is given (always "xla", and K == H).

    K key-value heads may be fewer than the H query heads if K divides H.
    """
    if segment_ids is not None:
        same = segment_mask(segment_ids, segment_ids)
        mask = same if mask is None else mask & same
    if dropout_rng is not None and dropout > 0:
        if causal:
            mask = causal_mask(q.shape[1]) if mask is None else mask & causal_mask(q.shape[1])
        return _attend_with_dropout(q, k, v, mask, scale, precision, dropout, dropout_rng)
    with jax.default_matmul_precision("highest" if precision.compute == "float32" else "default"):
        if implementation == "chunked":
            return _attend_in_blocks(q, k, v, mask, causal, scale)
        return jax.nn.dot_product_attention(
            q, k, v, mask=mask, is_causal=causal, scale=scale, implementation=implementation
        )


def _attend_in_blocks(q, k, v, mask, causal, scale):
    """Run over blocks of QUERY_BLOCK queries; every block sees all keys, so its softmax is the plain one."""
    length = q.shape[1]
    if length <= QUERY_BLOCK:
        return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, scale=scale, implementation="xla")
    if causal:
        visible = causal_mask(length)
        mask = visible if mask is None else mask & visible
    count = -(-length // QUERY_BLOCK)

    def blocks(x, axis):
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, count * QUERY_BLOCK - length)
        x = jnp.pad(x, padding, constant_values=x.dtype == bool)  # a padded query sees everything, lest it be 0 / 0
        x = x.reshape(*x.shape[:axis], count, QUERY_BLOCK, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis, 0)

    @jax.checkpoint  # the backward pass recomputes a block's scores instead of keeping all of them
    def one(block):
        rows, seen = block
        return jax.nn.dot_product_attention(rows, k, v, mask=seen, scale=scale, implementation="xla")

    y = jax.lax.map(one, (blocks(q, 1), None if mask is None else blocks(mask, 2)))
    y = jnp.moveaxis(y, 0, 1)
    return y.reshape(y.shape[0], -1, *y.shape[3:])[:, :length]

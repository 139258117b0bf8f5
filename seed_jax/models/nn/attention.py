"""The one entry point for attention."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from seed_jax.errors import UserError
from seed_jax.models.nn import remat, splash_attention
from seed_jax.precision import Precision

IMPLEMENTATIONS = ("xla", "chunked", "splash", "cudnn")
INTERPRETED = "splash-interpreted"  # the TPU kernel on any device, for tests
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
        implementation: "xla" (any device), "splash" (TPU kernel), "cudnn" (GPU kernel, 16-bit) or "chunked" (any
            device; a block of queries at a time, so that T x S scores never exist at once, in the backward pass
            neither). "splash" knows causality and segments only: with a `mask` (decoding) it is "xla".
        dropout: share of the attention weights dropped where `dropout_rng` is given (always "xla", and K == H).

    K key-value heads may be fewer than the H query heads if K divides H. What remat policies may keep has its names
    here (`remat.ATTENTION_NAMES`).
    """
    dropping = dropout_rng is not None and dropout > 0
    if implementation in ("splash", INTERPRETED) and mask is None and not dropping:
        interpret = implementation == INTERPRETED
        return splash_attention.attend(
            q, k, v, causal=causal, segment_ids=segment_ids, scale=scale, interpret=interpret
        )
    q, k, v = (remat.name(x, kept) for x, kept in zip((q, k, v), remat.OPERANDS, strict=True))
    if segment_ids is not None:
        same = segment_mask(segment_ids, segment_ids)
        mask = same if mask is None else mask & same
    if dropping:
        if causal:
            mask = causal_mask(q.shape[1]) if mask is None else mask & causal_mask(q.shape[1])
        context = _attend_with_dropout(q, k, v, mask, scale, precision, dropout, dropout_rng)
    else:
        context = _attend(q, k, v, mask, causal, scale, precision, implementation)
    return remat.name(context, remat.CONTEXT)


def _attend(q, k, v, mask, causal, scale, precision, implementation):
    with jax.default_matmul_precision("highest" if precision.compute == "float32" else "default"):
        if implementation == "chunked":
            return _attend_in_blocks(q, k, v, mask, causal, scale)
        kernel = "cudnn" if implementation == "cudnn" else "xla"
        if kernel == "cudnn":
            _check_cudnn(q)
        return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, scale=scale, implementation=kernel)


def attend_to_cache(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B K S D"],
    v: Float[Array, "B K S D"],
    *,
    mask: Bool[Array, "#B 1 T S"],
    precision: Precision = Precision(),
) -> Float[Array, "B T H D"]:
    """Attend to keys and values that lie head by head, with a few queries: one product for each head, as they lie.

    JAX's own would turn the whole cache over at every token (on a CPU 17 times as slow at 8 rows of 256 slots).
    """
    B, T, H, D = q.shape
    grouped = q.reshape(B, T, k.shape[1], -1, D)
    sums = {"precision": precision.matmul, "preferred_element_type": jnp.float32}
    scores = jnp.einsum("btkgd,bksd->bkgts", grouped, k, **sums) * D**-0.5
    weights = jax.nn.softmax(jnp.where(mask[:, :, None], scores, jnp.finfo(jnp.float32).min), axis=-1)
    y = jnp.einsum("bkgts,bksd->btkgd", weights.astype(v.dtype), v, **sums)
    return y.reshape(B, T, H, D).astype(q.dtype)


def check_implementation(name: str) -> None:
    """Raise for a name that is none of `IMPLEMENTATIONS`."""
    if name not in (*IMPLEMENTATIONS, INTERPRETED):
        raise UserError(f"Unknown attention {name!r}: expected one of {', '.join(IMPLEMENTATIONS)}.")


def _check_cudnn(q: Array) -> None:
    if q.dtype.itemsize != 2 or q.shape[-1] % 8 or q.shape[-1] > 128:
        raise UserError(
            f"attention 'cudnn' takes 16-bit heads of a multiple of 8 up to 128, not {q.dtype} of size {q.shape[-1]}: "
            "set precision.compute to bfloat16, or attention to xla."
        )


def _attend_plainly(q, k, v, mask, scale):
    return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale, implementation="xla")


def _attend_head_by_head(q, k, v, mask, scale):
    """Do one head of one row at a time, as plain matrices: on a CPU 2.7 times as fast as JAX's own (5.1 s to 1.9 s).

    The scores of a head stay in the caches, and dividing after the second product saves a pass over them. (Two rows of
    9216 positions, 5 heads of 64, 2 cores.)
    """
    B, T, H, D = q.shape

    def heads_first(x):
        x = jnp.repeat(x, H // x.shape[2], axis=2)
        return x.swapaxes(1, 2).reshape(B * H, x.shape[1], D)

    def one(head):
        q, k, v, seen = head
        scores = jnp.matmul(q * (D**-0.5 if scale is None else scale), k.T, preferred_element_type=jnp.float32)
        scores = scores if seen is None else jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        y = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return (y / weights.sum(-1, keepdims=True)).astype(v.dtype)

    if mask is not None:
        mask = jnp.broadcast_to(mask, (B, H, *mask.shape[2:])).reshape(B * H, *mask.shape[2:])
    y = jax.lax.map(one, (heads_first(q), heads_first(k), heads_first(v), mask))
    return y.reshape(B, H, T, D).swapaxes(1, 2)


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
        return jax.lax.platform_dependent(
            *(rows, k, v, seen),
            cpu=functools.partial(_attend_head_by_head, scale=scale),
            default=functools.partial(_attend_plainly, scale=scale),
        )

    y = jax.lax.map(one, (blocks(q, 1), None if mask is None else blocks(mask, 2)))
    y = jnp.moveaxis(y, 0, 1)
    return y.reshape(y.shape[0], -1, *y.shape[3:])[:, :length]

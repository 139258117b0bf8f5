"""Scaled dot-product attention: one entry point for all implementations."""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Key

from seed_jax.errors import UserError
from seed_jax.models.nn import remat, splash_attention
from seed_jax.precision import Precision

IMPLEMENTATIONS = ("xla", "chunked", "splash", "cudnn")
SPLASH_INTERPRETED = "splash-interpreted"  # the TPU kernel on any device, for tests
MAX_CUDNN_HEAD_SIZE = 128
QUERY_BLOCK_SIZE = 512  # queries per block of the "chunked" implementation


def segment_mask(query_segments: Int[Array, "B T"], key_segments: Int[Array, "B S"]) -> Bool[Array, "B 1 T S"]:
    """Let a position see the positions of its own segment only; segment 0 is padding and sees itself."""
    return (query_segments[:, :, None] == key_segments[:, None, :])[:, None]


def causal_mask(length: int) -> Bool[Array, "1 1 T T"]:
    """Let position i see positions 0..i."""
    return jnp.tril(jnp.ones((length, length), bool))[None, None]


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
    """Compute attention, with the softmax in float32.

    The operands and the result are marked for remat policies (`remat.ATTENTION_NAMES`).

    Args:
        q: queries.
        k: keys; K key-value heads may be fewer than the H query heads if K divides H.
        v: values.
        mask: True where a query may see a key. Combined with `causal` and `segment_ids`.
        causal: position i sees positions 0..i.
        segment_ids: packed sequences; a position sees only its own segment (self-attention: T == S).
        scale: factor on the scores, by default D ** -0.5.
        precision: its matmul precision.
        implementation: "xla" (any device), "splash" (TPU kernel), "cudnn" (GPU kernel, 16-bit) or "chunked" (any
            device; processes blocks of queries, so that the T x S scores are never materialized, nor in the backward
            pass). "splash" supports causality and segments only: with a `mask` it falls back to "xla".
        dropout: rate at which attention weights are dropped.
        dropout_rng: key of the dropout, without which there is none; with dropout the implementation is always "xla",
            and K must equal H.

    Raises:
        UserError: the implementation is unknown, or does not support the dtype or head size.
    """
    if implementation not in (*IMPLEMENTATIONS, SPLASH_INTERPRETED):
        raise UserError(f"Unknown attention {implementation!r}: expected one of {', '.join(IMPLEMENTATIONS)}.")
    if dropout_rng is not None and dropout > 0:
        q, k, v = _mark_operands(q, k, v)
        mask = _combine_masks(mask, segment_ids, causal, q.shape[1])
        context = _attend_with_dropout(q, k, v, mask, scale, precision, dropout, dropout_rng)
        return checkpoint_name(context, remat.CONTEXT_NAME)
    if implementation in ("splash", SPLASH_INTERPRETED) and mask is None:
        interpret = implementation == SPLASH_INTERPRETED
        return splash_attention.attend(
            q, k, v, causal=causal, segment_ids=segment_ids, scale=scale, interpret=interpret
        )
    q, k, v = _mark_operands(q, k, v)
    mask = _combine_masks(mask, segment_ids, False, q.shape[1])
    context = _attend(q, k, v, mask, causal, scale, precision, implementation)
    return checkpoint_name(context, remat.CONTEXT_NAME)


def _mark_operands(q, k, v):
    """Name the operands for remat policies."""
    return (checkpoint_name(x, name) for x, name in zip((q, k, v), remat.OPERAND_NAMES, strict=True))


def _combine_masks(mask: Array | None, segment_ids: Array | None, causal: bool, length: int) -> Array | None:
    if segment_ids is not None:
        same_segment = segment_mask(segment_ids, segment_ids)
        mask = same_segment if mask is None else mask & same_segment
    if causal:
        mask = causal_mask(length) if mask is None else mask & causal_mask(length)
    return mask


def _attend_with_dropout(q, k, v, mask, scale, precision, rate, rng):
    """Attend with dropout on the weights, which JAX's public kernels do not offer."""
    scores = jnp.einsum("bthd,bshd->bhts", q, k, precision=precision.matmul, preferred_element_type=jnp.float32)
    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1)
    keep = jax.random.bernoulli(rng, 1.0 - rate, weights.shape)
    weights = jnp.where(keep, weights / (1.0 - rate), 0.0).astype(v.dtype)
    return jnp.einsum("bhts,bshd->bthd", weights, v, precision=precision.matmul)


def _attend(q, k, v, mask, causal, scale, precision, implementation):
    with jax.default_matmul_precision(precision.matmul_name):
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
    """Attend with a few queries to a KV cache in head-major layout: one matmul per head, without a transpose.

    JAX's own attention would transpose the whole cache at every token (on a CPU 17 times slower at batch size 8 with
    256 slots).

    Args:
        q: queries of T new tokens.
        k: cached keys of S slots.
        v: cached values.
        mask: True where a query may see a slot.
        precision: its matmul precision.
    """
    attend = functools.partial(_attend_to_cache, precision=precision.matmul)
    if q.shape[1] == 1 or q.dtype == jnp.float32:
        return attend(q, k, v, mask)
    # XLA's CPU backend lacks batched matmuls of 16-bit operands with float32 results for several queries.
    return jax.lax.platform_dependent(
        *(q, k, v, mask), cpu=functools.partial(attend, operands=jnp.dtype(jnp.float32)), default=attend
    )


def _attend_to_cache(q, k, v, mask, precision, operands=None):
    """Attend to the cache; `operands` is the dtype to which the matmuls convert their operands."""
    B, T, H, D = q.shape

    def product(subscripts, x, y):
        x, y = (z.astype(operands or z.dtype) for z in (x, y))
        return jnp.einsum(subscripts, x, y, precision=precision, preferred_element_type=jnp.float32)

    grouped = q.reshape(B, T, k.shape[1], -1, D)
    scores = product("btkgd,bksd->bkgts", grouped, k) * D**-0.5
    weights = jax.nn.softmax(jnp.where(mask[:, :, None], scores, jnp.finfo(jnp.float32).min), axis=-1)
    y = product("bkgts,bksd->btkgd", weights.astype(v.dtype), v)
    return y.reshape(B, T, H, D).astype(q.dtype)


def _check_cudnn(q: Array) -> None:
    if q.dtype.itemsize != 2 or q.shape[-1] % 8 or q.shape[-1] > MAX_CUDNN_HEAD_SIZE:
        raise UserError(
            f"Attention 'cudnn' needs a 16-bit dtype and a head size of a multiple of 8 up to {MAX_CUDNN_HEAD_SIZE}, "
            f"found {q.dtype} and {q.shape[-1]}: set precision.compute to bfloat16, or attention to xla."
        )


def _attend_block(q, k, v, mask, scale):
    return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale, implementation="xla")


def _attend_block_on_cpu(q, k, v, mask, scale):
    """Process one head of one sequence at a time: on a CPU 2.7 times as fast as JAX's own (5.1 s to 1.9 s).

    The scores of a head stay in the caches, and dividing after the second matmul saves a pass over them. (Batch size 2,
    9216 positions, 5 heads of 64, 2 cores.)
    """
    B, T, H, D = q.shape

    def flatten_heads(x):
        x = jnp.repeat(x, H // x.shape[2], axis=2)
        return x.swapaxes(1, 2).reshape(B * H, x.shape[1], D)

    def attend_head(head):
        q, k, v, mask = head
        scores = jnp.matmul(q * (D**-0.5 if scale is None else scale), k.T, preferred_element_type=jnp.float32)
        scores = scores if mask is None else jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        y = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return (y / weights.sum(-1, keepdims=True)).astype(v.dtype)

    if mask is not None:
        mask = jnp.broadcast_to(mask, (B, H, *mask.shape[2:])).reshape(B * H, *mask.shape[2:])
    y = jax.lax.map(attend_head, (flatten_heads(q), flatten_heads(k), flatten_heads(v), mask))
    return y.reshape(B, H, T, D).swapaxes(1, 2)


def _attend_in_blocks(q, k, v, mask, causal, scale):
    """Loop over blocks of QUERY_BLOCK_SIZE queries; every block sees all keys, so its softmax is exact."""
    length = q.shape[1]
    if length <= QUERY_BLOCK_SIZE:
        return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, scale=scale, implementation="xla")
    mask = _combine_masks(mask, None, causal, length)
    count = -(-length // QUERY_BLOCK_SIZE)

    def split(x, axis):
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, count * QUERY_BLOCK_SIZE - length)
        x = jnp.pad(x, padding, constant_values=x.dtype == bool)  # a padded query sees all keys, which avoids 0 / 0
        x = x.reshape(*x.shape[:axis], count, QUERY_BLOCK_SIZE, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis, 0)

    @jax.checkpoint  # the backward pass recomputes a block's scores instead of saving all of them
    def attend_block(block):
        queries, mask = block
        return jax.lax.platform_dependent(
            *(queries, k, v, mask),
            cpu=functools.partial(_attend_block_on_cpu, scale=scale),
            default=functools.partial(_attend_block, scale=scale),
        )

    y = jax.lax.map(attend_block, (split(q, 1), None if mask is None else split(mask, 2)))
    y = jnp.moveaxis(y, 0, 1)
    return y.reshape(y.shape[0], -1, *y.shape[3:])[:, :length]

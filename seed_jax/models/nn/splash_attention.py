"""The Pallas attention kernel for TPUs ("splash"), which never writes the scores to HBM.

A kernel sees one device's sequences and heads, so it runs inside `shard_map` if a mesh is set. It takes sizes that are
multiples of 128: head sizes and lengths are padded with zeros, and the padding gets a segment of its own.
"""

import functools

import jax
import jax.numpy as jnp
from flax.core.spmd import get_logical_axis_rules
from flax.linen.spmd import logical_to_mesh_axes
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from seed_jax.models.nn import remat

LANES = 128
# Positions of queries and of keys that a kernel works on at a time; both fit all TPU generations. Larger blocks have
# fewer steps, of which causal attention skips fewer: by the compiled schedules of all generations, 512 takes least time
# at 2048 positions, and 1024 from 8192 on (2 to 17 % less). Heads are padded to 128, so their size changes nothing.
BLOCK_SIZE = 512
LONG_BLOCK_SIZE = 1024
LONG_LENGTH = 8192
_PADDING_SEGMENT = -1
HEADS_AXES = ("batch", "sequence", "act_heads", None)


def attend(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    *,
    causal: bool,
    segment_ids: Int[Array, "B T"] | None,
    scale: float | None,
    block_size: int | None = None,
    interpret: bool = False,
) -> Float[Array, "B T H D"]:
    """Compute `attention.attend` without a general mask.

    Args:
        q: queries.
        k: keys.
        v: values.
        causal: position i sees positions 0..i.
        segment_ids: packed sequences; a position sees only its own segment.
        scale: factor on the scores, by default D ** -0.5.
        block_size: maximum number of positions that a kernel works on at a time, a multiple of 128; by default 512, or
            1024 for long sequences.
        interpret: run the kernel in Pallas's interpret mode, on any device; slow.
    """
    if block_size is None:
        block_size = LONG_BLOCK_SIZE if q.shape[1] >= LONG_LENGTH else BLOCK_SIZE
    # The kernel applies no scale; applied in float32, so that 16-bit queries are rounded only once.
    q = (q.astype(jnp.float32) * (q.shape[-1] ** -0.5 if scale is None else scale)).astype(q.dtype)
    if segment_ids is None:
        query_segments = jnp.zeros(q.shape[:2], jnp.int32)
        key_segments = jnp.zeros(k.shape[:2], jnp.int32)
    else:
        query_segments = key_segments = segment_ids.astype(jnp.int32)
    run = functools.partial(_attend_on_device, causal=causal, block_size=block_size, interpret=interpret)
    rules = get_logical_axis_rules()
    mesh = jax.sharding.get_abstract_mesh()
    if rules and not mesh.empty:
        heads_spec = PartitionSpec(*logical_to_mesh_axes(HEADS_AXES, rules) or ())
        segments_spec = PartitionSpec(*heads_spec[:2])
        run = jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(heads_spec, heads_spec, heads_spec, segments_spec, segments_spec),
            out_specs=heads_spec,
            check_vma=False,
        )
    return run(q, k, v, query_segments, key_segments)


def _attend_on_device(q, k, v, query_segments, key_segments, *, causal, block_size, interpret):
    """Run the kernel over this device's sequences and heads."""
    length, head_size = q.shape[1], q.shape[-1]
    block_q, block_k = _block_size(length, block_size), _block_size(k.shape[1], block_size)
    # [B, H, T, D], the layout of the forward and backward kernels: what a remat policy saves is not transposed again.
    q, k, v = (
        checkpoint_name(jnp.moveaxis(x, 2, 1), name) for x, name in zip((q, k, v), remat.OPERAND_NAMES, strict=True)
    )
    q, query_segments = _pad(q, query_segments, block_q)
    k, padded_key_segments = _pad(k, key_segments, block_k)
    v, _ = _pad(v, key_segments, block_k)
    shape = (q.shape[2], k.shape[2])
    mask = splash.CausalMask(shape) if causal else splash.FullMask(shape)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * q.shape[1]),
        block_sizes=splash.BlockSizes(
            block_q=block_q,
            block_kv=block_k,
            block_kv_compute=block_k,
            block_q_dkv=block_q,
            block_kv_dkv=block_k,
            block_kv_dkv_compute=block_k,
            block_q_dq=block_q,
            block_kv_dq=block_k,
        ),
        head_shards=1,
        q_seq_shards=1,
        # Saves the kernel's output and its softmax statistics, so that the backward pass recomputes neither.
        residual_checkpoint_name=remat.CONTEXT_NAME,
        interpret=interpret,
    )

    def attend_sequence(q, k, v, query_segments, key_segments) -> Array:
        context = kernel(q, k, v, splash.SegmentIds(query_segments, key_segments))
        assert isinstance(context, jax.Array)  # a tuple only if residuals are returned too
        return context

    context = jax.vmap(attend_sequence)(q, k, v, query_segments, padded_key_segments)
    return jnp.moveaxis(context, 1, 2)[:, :length, :, :head_size].astype(q.dtype)


def _block_size(length: int, largest: int) -> int:
    """Return the block size for a length: the largest one up to `largest` among those with the least padding."""
    padded = -(-length // LANES) * LANES
    candidates = range(LANES, min(largest, padded) + 1, LANES)
    return max(candidates, key=lambda size: (-(-length // size) * -size, size))


def _pad(x, segments, block_size):
    """Pad the length of [B, H, T, D] to a multiple of `block_size` and the head size to a multiple of 128."""
    length = -x.shape[2] % block_size
    x = jnp.pad(x, ((0, 0), (0, 0), (0, length), (0, -x.shape[3] % LANES)))
    segments = jnp.pad(segments, ((0, 0), (0, -segments.shape[1] % block_size)), constant_values=_PADDING_SEGMENT)
    return x, segments

"""The Pallas attention kernel for TPUs ("splash"): scores never leave the chip's fast memory.

A kernel sees one device's rows and heads, so it runs inside `shard_map` wherever a mesh is set. It takes sizes that are
multiples of 128: head sizes and lengths are filled up with zeros, which a segment of their own hides.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from seed_jax.models.nn import remat

LANES = 128
BLOCK = 512  # positions of queries and of keys a kernel works on at a time; the largest that fits all generations
_PADDING = -1  # segment of positions that only fill up
AXES = ("batch", "sequence", "act_heads", None)


def attend(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    *,
    causal: bool,
    segment_ids: Int[Array, "B T"] | None,
    scale: float | None,
    block: int = BLOCK,
    interpret: bool = False,
) -> Float[Array, "B T H D"]:
    """Do what `attention.attend` does without a general mask.

    Args:
        block: most positions a kernel works on at a time, a multiple of 128.
        interpret: run the kernel's steps as ordinary operations, on any device; slow.
    """
    # The kernel applies no scale of its own; in float32, lest 16 bits round twice.
    q = (q.astype(jnp.float32) * (q.shape[-1] ** -0.5 if scale is None else scale)).astype(q.dtype)
    rows, queries, keys = q.shape[0], q.shape[1], k.shape[1]
    if segment_ids is None:
        query_segments, key_segments = jnp.zeros((rows, queries), jnp.int32), jnp.zeros((rows, keys), jnp.int32)
    else:
        query_segments = key_segments = segment_ids.astype(jnp.int32)
    run = functools.partial(_on_device, causal=causal, block=block, interpret=interpret)
    rules = nn.get_logical_axis_rules()
    mesh = jax.sharding.get_abstract_mesh()
    if rules and not mesh.empty:
        heads = nn.logical_to_mesh_axes(AXES, rules)
        flat = PartitionSpec(*heads[:2])
        run = jax.shard_map(
            run, mesh=mesh, in_specs=(heads, heads, heads, flat, flat), out_specs=heads, check_vma=False
        )
    return run(q, k, v, query_segments, key_segments)


def _on_device(q, k, v, query_segments, key_segments, *, causal, block, interpret):
    """Run the kernel over this device's rows."""
    queries, size = q.shape[1], q.shape[-1]
    block_q, block_k = _block(queries, block), _block(k.shape[1], block)
    # Heads first, as the kernels of both directions take them: what is kept under its name is not turned again.
    q, k, v = (remat.name(jnp.moveaxis(x, 2, 1), kept) for x, kept in zip((q, k, v), remat.OPERANDS, strict=True))
    q, query_segments = _fill(q, query_segments, block_q)
    k, key_segments = _fill(k, key_segments, block_k)
    v, _ = _fill(v, key_segments, block_k)
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
        # The context as the kernel leaves it and the sums of its softmax: with both nothing of it is done twice.
        residual_checkpoint_name=remat.CONTEXT,
        interpret=interpret,
    )
    one = lambda q, k, v, of_q, of_k: kernel(q, k, v, splash.SegmentIds(of_q, of_k))  # noqa: E731
    context = jnp.moveaxis(jax.vmap(one)(q, k, v, query_segments, key_segments), 1, 2)
    return context[:, :queries, :, :size].astype(q.dtype)


def _block(length: int, most: int) -> int:
    """Return the block for a length: what is at most `most` and fills up least."""
    padded = -(-length // LANES) * LANES
    candidates = range(LANES, min(most, padded) + 1, LANES)
    return max(candidates, key=lambda block: (-(-length // block) * -block, block))


def _fill(x, segments, block):
    """Fill up the length of [B, H, T, D] to a multiple of `block` and the head size to one of 128."""
    length = -x.shape[2] % block
    x = jnp.pad(x, ((0, 0), (0, 0), (0, length), (0, -x.shape[3] % LANES)))
    return x, jnp.pad(segments, ((0, 0), (0, -segments.shape[1] % block)), constant_values=_PADDING)

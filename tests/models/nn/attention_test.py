"""Attention: all implementations against plain JAX, their memory, remat names, sharding and lowering."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from seed_jax import sharding
from seed_jax.errors import UserError
from seed_jax.models.nn import attention, remat
from seed_jax.models.nn.attention import attend


def inputs(queries: int, keys: int) -> list[jax.Array]:
    shapes = [(2, queries, 4, 8), (2, keys, 2, 8), (2, keys, 2, 8)]
    return [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize(("queries", "keys", "options"), [
    (32, 32, {}), (29, 17, {}),
    (29, 29, {"segment_ids": jnp.repeat(jnp.arange(3), 10)[None, :29].repeat(2, 0)}),
    (29, 29, {"causal": True, "mask": jnp.arange(29)[None, None, None] != jnp.arange(29)[None, None, :, None] - 3}),
])  # fmt: skip
def test_chunked_attention_equals_plain_attention(monkeypatch, queries, keys, options):
    monkeypatch.setattr(attention, "QUERY_BLOCK_SIZE", 8)
    q, k, v = inputs(queries, keys)

    def run(implementation):
        def total(q, k, v):
            y = attend(q, k, v, implementation=implementation, **options)
            return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum(), y

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    ((_, plain), gradient), ((_, chunked), chunked_gradient) = run("xla"), run("chunked")
    np.testing.assert_allclose(chunked, plain, atol=1e-6)  # float32 rounding
    for ours, expected in zip(chunked_gradient, gradient, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.optimized
def test_chunked_attention_never_materializes_all_scores():
    """Of 4096 x 4096 scores in float32, 64 MiB per head, only a block exists, forward and backward."""
    shape = jax.ShapeDtypeStruct((1, 4096, 1, 8), jnp.float32)

    def temporary_bytes(implementation):
        def total(q, k, v):
            return jnp.square(attend(q, k, v, implementation=implementation)).sum()

        return jax.jit(jax.grad(total)).lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes

    scores = 4 * 4096**2
    assert temporary_bytes("xla") > scores
    assert temporary_bytes("chunked") < scores / 2


def packed_segments(rows: int, length: int) -> jax.Array:
    """Return two segments of different lengths, then padding (segment 0); the last row is all padding."""
    segments = np.zeros((rows, length), np.int32)
    segments[:-1, : length // 3], segments[:-1, length // 3 : length - 9] = 1, 2
    return jnp.asarray(segments)


@pytest.mark.parametrize(
    ("size", "queries", "keys", "kv_heads", "causal"),
    [(64, 160, 160, 2, True), (88, 130, 130, 2, False), (128, 128, 128, 1, True), (88, 40, 150, 2, False)],
)
def test_splash_attention_equals_plain_attention(size, queries, keys, kv_heads, causal):
    """In interpret mode: packed rows, a row of padding, padded head sizes, grouped heads, unequal lengths."""
    shapes = [(2, queries, 2, size), (2, keys, kv_heads, size), (2, keys, kv_heads, size)]
    q, k, v = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes))
    segments = packed_segments(2, queries) if queries == keys else None

    def run(implementation):
        def total(q, k, v):
            y = attend(q, k, v, causal=causal, segment_ids=segments, implementation=implementation)
            return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum(), y

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    ((_, plain), gradient), ((_, kernel), kernel_gradient) = run("xla"), run(attention.SPLASH_INTERPRETED)
    np.testing.assert_allclose(kernel, plain, atol=2e-6)  # float32 sums in another order
    for ours, expected in zip(kernel_gradient, gradient, strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_save_qkv_saves_one_copy_of_each_array():
    """A policy that saves attention's operands and result saves one copy of each, in the kernel's layout."""
    x = jax.ShapeDtypeStruct((2, 256, 3, 128), jnp.float32)

    def saved_elements(implementation):
        def layer(x):
            y = attend(jnp.sin(x), jnp.cos(x), jnp.tanh(x), causal=True, implementation=implementation)
            return jnp.sin(y).sum()

        run = jax.checkpoint(layer, policy=remat.POLICIES["save_qkv"])
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(run, x)[1], x)))

    assert saved_elements("xla") == 5 * x.size  # x, query, key, value, context
    # Also the softmax statistics and the kernel's block mask.
    assert 5 * x.size < saved_elements(attention.SPLASH_INTERPRETED) < 5.1 * x.size


def test_splash_attention_is_sharded_over_batch_and_heads():
    """Under a mesh each device runs the kernel on its own shard, with the results of one device."""
    mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
    q, k, v = (jax.random.normal(jax.random.key(i), (4, 128, 2, 64)) for i in range(3))
    run = functools.partial(
        attend, causal=True, segment_ids=packed_segments(4, 128), implementation=attention.SPLASH_INTERPRETED
    )
    unsharded = jax.jit(run)(q, k, v)
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.LOGICAL_AXIS_RULES):
        heads_sharding = NamedSharding(mesh, nn.logical_to_mesh_axes(("batch", "sequence", "act_heads", None)))
        sharded = jax.jit(run)(*(jax.device_put(x, heads_sharding) for x in (q, k, v)))
    assert sharded.sharding.shard_shape(sharded.shape) == (1, 128, 1, 64)
    np.testing.assert_allclose(sharded, unsharded, atol=1e-6)


@pytest.mark.parametrize("size", [64, 88, 128])
def test_cudnn_attention_lowers_to_the_fused_kernel(monkeypatch, size):
    """Lowered for a GPU, forward and backward pass are calls of cuDNN's fused attention; needs no GPU."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91002)
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_compute_capability", lambda capability: True)
    shape = jax.ShapeDtypeStruct((2, 128, 2, size), jnp.bfloat16)

    def total(q, k, v):
        return (
            attend(q, k, v, causal=True, segment_ids=packed_segments(2, 128), implementation="cudnn")
            .astype(jnp.float32)
            .sum()
        )

    lowered = jax.jit(jax.grad(total)).trace(shape, shape, shape).lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmha" in lowered
    assert "Backward" in lowered


def test_unsupported_inputs_and_names_are_refused():
    q = jnp.zeros((1, 16, 1, 64))
    with pytest.raises(UserError, match="16-bit dtype"):
        attend(q, q, q, implementation="cudnn")
    with pytest.raises(UserError, match="Unknown attention 'flash'"):
        attend(q, q, q, implementation="flash")

"""LoRA: merged equals unmerged, shapes, axes, targets, dropout."""

import contextlib
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec

from seed_jax import sharding
from seed_jax.models.llama.block import LORA_TARGETS
from seed_jax.models.llama.model import Llama, LlamaConfig
from seed_jax.models.nn import lora
from seed_jax.models.nn.lora import LoraSpec

CONFIG = LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1)
SPEC = LoraSpec(LORA_TARGETS, rank=4, alpha=8.0, dropout=0.5)
TOKENS = jnp.arange(3, 11)[None]


@pytest.fixture(scope="module")
def params():
    return meta.unbox(jax.jit(Llama(CONFIG).init)(jax.random.key(0), TOKENS))["params"]


@pytest.fixture(scope="module")
def adapters(params):
    initial = lora.init(params, SPEC, jax.random.key(1))
    return jax.tree.map(lambda x: 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), initial)


def test_initial_adapters_change_nothing(params):
    initial = lora.init(params, SPEC, jax.random.key(1))
    adapted = jax.jit(Llama(CONFIG, lora=SPEC).apply)({"params": params, "lora": initial}, TOKENS)
    np.testing.assert_array_equal(adapted, jax.jit(Llama(CONFIG).apply)({"params": params}, TOKENS))
    a = flatten_dict(initial, sep="/")["layers/mlp/down_proj/a"]
    assert 0.9 * 24**-0.5 < jnp.abs(a).max() <= 24**-0.5  # kaiming_uniform(sqrt 5): 1 / sqrt(fan in)


def test_merged_equals_unmerged(params, adapters):
    unmerged = jax.jit(Llama(CONFIG, lora=SPEC).apply)({"params": params, "lora": adapters}, TOKENS)
    merged = jax.jit(Llama(CONFIG).apply)({"params": lora.merge(params, adapters, SPEC)}, TOKENS)
    # x (W + s a b) against x W + s (x a) b in float32, at logits of order 0.1.
    np.testing.assert_allclose(merged, unmerged, atol=2e-6, rtol=0)
    assert jnp.abs(merged - jax.jit(Llama(CONFIG).apply)({"params": params}, TOKENS)).max() > 1e-2


def test_only_targets_are_adapted(params):
    spec = LoraSpec(rank=2, targets=("q_proj", "v_proj"))
    paths = set(flatten_dict(lora.init(params, spec, jax.random.key(0)), sep="/"))
    assert paths == {f"layers/self_attn/{name}/{leaf}" for name in ("q_proj", "v_proj") for leaf in "ab"}


def test_abstract_adapters_have_shapes_and_axes(params):
    boxed = jax.eval_shape(Llama(CONFIG).init, jax.random.key(0), TOKENS)["params"]
    abstract, initial = lora.abstract(boxed, SPEC), lora.init(params, SPEC, jax.random.key(0))
    unboxed = flatten_dict(meta.unbox(abstract), sep="/")
    assert {k: v.shape for k, v in unboxed.items()} == {k: v.shape for k, v in flatten_dict(initial, sep="/").items()}
    down = abstract["layers"]["mlp"]["down_proj"]
    assert (down["a"].names, down["b"].names) == (("layers", "adapter", None), ("layers", None, "embed"))


def test_dropout_keeps_the_mean_and_differs_between_layers_and_projections(params, adapters):
    x, (a, b) = jnp.ones((400, 16)), (jnp.eye(16, 4), jnp.ones((4, 3)))
    dropped = lora.delta(x, a, b, SPEC, rng=jax.random.key(0))
    exact = lora.delta(x, a, b, SPEC)
    assert jnp.unique(dropped).size > 1
    # Mean of 400 rows of 4 independent 0-or-2: standard error 2 * 0.5 * sqrt(4 * 400) / 400 * scale 2 = 0.2.
    np.testing.assert_allclose(dropped.mean(0), exact.mean(0), atol=0.6)
    model = Llama(CONFIG, lora=SPEC)

    @jax.jit
    def logits(seed):
        variables = {"params": params, "lora": adapters}
        return model.apply(variables, TOKENS, deterministic=False, rngs={"dropout": jax.random.key(seed)})

    np.testing.assert_array_equal(logits(0), logits(0))
    assert jnp.abs(logits(0) - logits(1)).max() > 1e-3


def test_dropout_needs_a_key(params, adapters):
    with pytest.raises(Exception, match="dropout"):
        Llama(CONFIG, lora=SPEC).apply({"params": params, "lora": adapters}, TOKENS, deterministic=False)


def test_merging_keeps_the_dtype_and_rounds_once(params, adapters):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    merged = lora.merge(half, adapters, SPEC)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}
    kernel, pair = half["layers"]["mlp"]["up_proj"]["kernel"], adapters["layers"]["mlp"]["up_proj"]
    exact = kernel.astype(jnp.float32) + 2.0 * jnp.matmul(pair["a"], pair["b"], precision="highest")
    np.testing.assert_array_equal(merged["layers"]["mlp"]["up_proj"]["kernel"], exact.astype(jnp.bfloat16))


def loss_and_gradients(spec, params, adapters, *, deterministic):
    model = Llama(CONFIG, lora=spec)

    @jax.jit
    def loss(variables):
        logits = model.apply(variables, jnp.arange(3, 35).reshape(8, 4), deterministic=deterministic)
        return 10 * jnp.square(logits).mean()

    return jax.value_and_grad(loss)({"params": params, "lora": adapters})


@pytest.mark.parametrize(
    "mesh",
    [None, pytest.param({"fsdp": 4, "tensor": 2}, marks=pytest.mark.slow)],
    ids=["one device", "mesh"],
)
def test_folded_kernels_have_the_gradients_of_separate_adapters(params, adapters, mesh):
    """Without dropout training folds adapters into kernels; deterministic calls, as of evaluators, do not."""
    spec = dataclasses.replace(SPEC, dropout=0.0)
    expected = loss_and_gradients(spec, params, adapters, deterministic=True)
    with contextlib.ExitStack() as stack:
        if mesh:
            stack.enter_context(jax.set_mesh(sharding.make_mesh(mesh)))
            stack.enter_context(nn.logical_axis_rules(sharding.LOGICAL_AXIS_RULES))
        folded = loss_and_gradients(spec, params, adapters, deterministic=False)
    assert max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(expected[1]["lora"])) > 0.02
    # The same sums in float32 in another order; 1e-7 as measured.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6, rtol=0), folded, expected)


def test_dropout_masks_are_independent_and_do_not_depend_on_sharding():
    shape, keep = (8, 64, 256), 0.95
    masks = np.stack([lora.keep_mask(jax.random.key(seed), keep, shape) for seed in range(4)])
    dropped = ~masks
    # 131,072 elements of variance 0.0475 each: a standard error of 0.0006, and a third of it along rows and columns.
    np.testing.assert_allclose(dropped.mean((1, 2, 3)), 0.05, atol=0.003)
    assert dropped.mean((1, 2)).std() < 1.2 * (0.0475 / 512) ** 0.5
    assert dropped.mean((1, 3)).std() < 1.2 * (0.0475 / 2048) ** 0.5
    pairs = [
        dropped[:, :, :, 1:] & dropped[:, :, :, :-1],
        dropped[:, :, 1:] & dropped[:, :, :-1],
        dropped[1:] & dropped[:-1],
    ]
    # Neighbours and successive keys are dropped together as often as chance has it, 0.0025 with an error of 0.0001.
    np.testing.assert_allclose([pair.mean() for pair in pairs], 0.0025, atol=0.0005)
    with jax.set_mesh(sharding.make_mesh({"fsdp": 8})):
        sharded = jax.jit(lambda key: lora.keep_mask(key, keep, shape), out_shardings=PartitionSpec("fsdp"))
        np.testing.assert_array_equal(sharded(jax.random.key(3)), masks[3])

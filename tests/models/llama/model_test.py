"""LLaMA against the recorded original and transformers; scan, remat, packing, KV cache and sharding against itself."""

import copy
import dataclasses
import functools
import itertools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax.core import meta
from flax.traverse_util import flatten_dict

from seed_jax import sharding
from seed_jax.convert.key_table import assemble, disassemble
from seed_jax.convert.llama.key_table import abstract_params, key_table
from seed_jax.convert.tensors import LazyTensor, TensorDict
from seed_jax.errors import UserError
from seed_jax.losses.next_token import next_token_loss
from seed_jax.models.llama.block import LORA_TARGETS, apply_rope, attention_metadata, rope_by_permutation, rope_by_split
from seed_jax.models.llama.model import Llama, LlamaConfig, stack_layers, unstack_layers
from seed_jax.models.nn import lora
from seed_jax.models.nn.layers import RMSNorm
from seed_jax.precision import Precision
from tests.support import golden, philox

GOLDEN = LlamaConfig(366, 64, 172, 3, 4, 4, max_length=256)
SMALL = LlamaConfig(vocab_size=97, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4, num_kv_heads=2)
BF16 = Precision(compute="bfloat16")


def from_hugging_face(arrays: dict[str, np.ndarray], config: LlamaConfig) -> dict:
    tensors = {name: LazyTensor(array.shape, array.dtype, lambda array=array: array) for name, array in arrays.items()}
    return assemble(key_table(config), TensorDict(tensors, "test"), abstract_params(config))


@pytest.fixture(scope="module")
def golden_params():
    return from_hugging_face(golden.tensors("llama_tiny/weights.safetensors"), GOLDEN)


@functools.cache
def small_params() -> dict:
    params = meta.unbox(jax.jit(Llama(SMALL).init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32)))["params"]
    # Larger than the initial weights, so that attention is far from uniform and errors matter.
    return jax.tree.map(lambda x: x * 6 if x.ndim > 1 and x.shape[-1] > 1 else x, params)


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def forward(model: Llama, params: dict, *inputs, method: str = "__call__"):
    return model.apply({"params": params}, *inputs, method=method)


def random_tokens(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), shape, 3, SMALL.vocab_size)


def masked_loss(model: Llama, params: dict, inputs: dict[str, np.ndarray]) -> jax.Array:
    tokens, labels = jnp.asarray(inputs["input_ids"])[:, :-1], jnp.asarray(inputs["labels"])[:, 1:]
    hidden = model.apply({"params": params}, tokens, method="features")
    loss = next_token_loss(
        hidden, params["lm_head"]["kernel"], jnp.maximum(labels, 0), labels != -100, vocab_size=366, chunk_size=16
    )
    return loss.total.mean


def test_states_and_logits_equal_the_original(golden_params):
    inputs, expected = (golden.tensors(f"llama_tiny/{name}.safetensors") for name in ("inputs", "outputs"))
    apply = jax.jit(functools.partial(Llama(GOLDEN).apply, mutable=["intermediates"]))
    logits, kept = apply({"params": golden_params}, inputs["input_ids"])
    features = forward(Llama(GOLDEN), golden_params, inputs["input_ids"], method="features")
    hidden = kept["intermediates"]["layers"]["hidden"][0]
    valid = inputs["attention_mask"] == 1  # in the original, padding attends to padding
    embedded = golden_params["embed_tokens"]["embedding"][inputs["input_ids"]]
    # 1e-4: ten times the difference between the original in float32 and in float64.
    for actual, name in [
        (embedded, "hidden_0"),
        (hidden[0], "hidden_1"),
        (hidden[1], "hidden_2"),
        (features, "hidden_3"),
    ]:
        np.testing.assert_allclose(actual[valid], expected[name][valid], atol=1e-4, rtol=0, err_msg=name)
    np.testing.assert_allclose(logits[valid], expected["logits"][valid], atol=1e-4, rtol=0)


def test_masked_loss_and_gradients_equal_the_original(golden_params):
    inputs, expected = (golden.tensors(f"llama_tiny/{name}.safetensors") for name in ("inputs", "outputs"))
    model = Llama(GOLDEN, remat="full")
    loss, gradients = jax.jit(jax.value_and_grad(lambda p: masked_loss(model, p, inputs)))(golden_params)
    assert abs(loss - expected["loss"]) < 1e-5
    actual = dict(disassemble(key_table(GOLDEN), gradients))
    expected_gradients = golden.tensors("llama_tiny/grads.safetensors")
    assert actual.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        # 1e-4 of the norm: the loss sums 366 exponentials in another order than torch does.
        assert np.linalg.norm(actual[name] - gradient) < 1e-4 * np.linalg.norm(gradient), name
    assert not gradients["lm_head"]["kernel"][:, 366:].any()
    assert not gradients["embed_tokens"]["embedding"][366:].any()


@functools.cache
def grouped():
    """Return a transformers model with random weights and grouped heads, the same as ours, and tokens."""
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "vocab_size": 131}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}
    config = transformers.LlamaConfig(**sizes, **heads, rope_theta=500.0)
    reference = transformers.LlamaForCausalLM(config).eval()
    for name, parameter in reference.named_parameters():
        noise = 0.2 * philox.normal(0, name, tuple(parameter.shape))
        parameter.data = torch.from_numpy(noise + (parameter.ndim == 1))  # norm scales around 1
    ours = LlamaConfig(131, 48, 80, 2, 6, 2, rms_norm_eps=1e-5, rope_theta=500.0)
    params = from_hugging_face({name: tensor.numpy() for name, tensor in reference.state_dict().items()}, ours)
    return reference, ours, params, np.random.default_rng(0).integers(3, 131, (2, 17))


def torch_logits(reference, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return reference(torch.tensor(tokens)).logits.float().numpy()


def test_grouped_heads_equal_transformers():
    reference, config, params, tokens = grouped()
    # Float32 on both sides, logits of order 1: only the order of summation differs.
    np.testing.assert_allclose(
        forward(Llama(config), params, tokens), torch_logits(reference, tokens), atol=2e-5, rtol=0
    )


def test_bfloat16_is_as_accurate_as_transformers():
    reference, config, params, tokens = grouped()
    exact = torch_logits(reference, tokens)
    reference_error = torch_logits(copy.deepcopy(reference).bfloat16(), tokens) - exact
    model = Llama(config, BF16)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(np.float32), params)
    logits = forward(model, rounded, tokens)
    assert logits.dtype == jnp.float32
    assert np.std(logits - exact) < 1.1 * np.std(reference_error)  # 10 % for chance in rounding
    jaxpr = str(jax.make_jaxpr(lambda p: model.apply({"params": p}, jnp.asarray(tokens)))(params))
    sensitive = [
        line for line in jaxpr.splitlines() if re.search(r" = (exp|rsqrt|cos|sin|reduce_max|reduce_sum)\b", line)
    ]
    assert sensitive
    assert not [line for line in sensitive if "bf16" in line.split("=")[0]]


def test_norm_casts_where_the_original_does():
    x, scale = (jax.random.normal(jax.random.key(i), s, jnp.bfloat16) for i, s in enumerate([(4, 50, 64), (64,)]))
    norm = transformers.models.llama.modeling_llama.LlamaRMSNorm(64, 1e-6).to(torch.bfloat16)
    norm.weight.data = torch.tensor(np.asarray(scale, np.float32)).bfloat16()
    expected = norm(torch.tensor(np.asarray(x, np.float32)).bfloat16()).detach().float().numpy()
    normed = RMSNorm(1e-6, BF16).apply({"params": {"scale": scale.astype(jnp.float32)}}, x)
    np.testing.assert_array_equal(np.asarray(normed, np.float32), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rope_on_a_tpu_equals_rope_elsewhere(dtype):
    """Multiplying by a permutation matrix is exact; gradients round once more in 16 bits."""
    x = jax.random.normal(jax.random.key(0), (2, 9, 3, 16), dtype)
    metadata = attention_metadata(
        dataclasses.replace(SMALL, hidden_size=48, num_heads=3, num_kv_heads=3), jnp.arange(18).reshape(2, 9)
    )

    def run(rope):
        def total(x):
            y = rope(x, metadata.cos, metadata.sin).astype(jnp.float32)
            return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum(), y

        return jax.jit(jax.grad(total, has_aux=True))(x)

    (gradient, plain), (permutation_gradient, permuted) = run(rope_by_split), run(rope_by_permutation)
    step = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(permuted, plain, rtol=step, atol=2 * float(jnp.finfo("float32").eps))
    np.testing.assert_allclose(permutation_gradient.astype("float32"), gradient.astype("float32"), atol=2 * step)
    text = jax.jit(lambda x: apply_rope(x, metadata)).trace(x).lower(lowering_platforms=("tpu",)).as_text()
    assert "dot_general" in text


def test_attention_is_causal():
    model, params, tokens = Llama(SMALL), small_params(), random_tokens(1, 7)

    def logits_of(table):
        return model.apply({"params": {**params, "embed_tokens": {"embedding": table}}}, jnp.arange(7)[None]).sum(
            (0, -1)
        )

    rows = params["embed_tokens"]["embedding"][tokens[0]]
    table = jnp.zeros_like(params["embed_tokens"]["embedding"]).at[:7].set(rows)
    sensitivity = jnp.abs(jax.jit(jax.jacobian(logits_of))(table)[:, :7]).sum(-1)  # [output position, input position]
    assert not np.triu(sensitivity, k=1).any()
    assert (np.tril(sensitivity) > 0).sum() == 7 * 8 // 2


def test_packed_segments_equal_separate_sequences():
    model, params = Llama(SMALL), small_params()
    first, second = random_tokens(1, 6, seed=1), random_tokens(1, 5, seed=2)
    packed = jnp.concatenate([first, second, jnp.zeros((1, 2), jnp.int32)], axis=1)
    segments = jnp.array([[1] * 6 + [2] * 5 + [0] * 2])
    positions = jnp.array([[*range(6), *range(5), 0, 0]])
    together = forward(model, params, packed, segments, positions)
    # Masked scores contribute exact zeros; 2e-5 allows for sums over 13 instead of 6 keys at logits of order 1.
    np.testing.assert_allclose(together[:, :6], forward(model, params, first), atol=2e-5, rtol=0)
    np.testing.assert_allclose(together[:, 6:11], forward(model, params, second), atol=2e-5, rtol=0)


@pytest.mark.parametrize("scan", [True, False])
def test_decoding_with_a_cache_equals_the_full_forward(scan):
    model, tokens, lengths = Llama(SMALL, scan_layers=scan), random_tokens(2, 10), jnp.array([7, 4])
    params = small_params() if scan else unstack_layers(small_params())
    expected = forward(model, params, tokens)
    decode = jax.jit(functools.partial(model.apply, method="decode"), static_argnames="prefill")
    prompt = jnp.where(jnp.arange(7)[None] < lengths[:, None], tokens[:, :7], 0)
    positions = jnp.broadcast_to(jnp.arange(7), (2, 7))
    step = decode({"params": params}, prompt, model.init_cache(2, 12), positions, prefill=True, logits_at=lengths - 1)
    for offset in range(4):
        wanted = expected[jnp.arange(2), lengths + offset - 1]
        # As above: the same sums in another order.
        np.testing.assert_allclose(step.logits[:, 0], wanted, atol=2e-5, rtol=0)
        if offset < 3:
            following = (lengths + offset)[:, None]
            token = jnp.take_along_axis(tokens, following, axis=1)
            step = decode({"params": params}, token, step.cache, following)


def test_chunked_prefill_equals_one_prefill():
    model, tokens, params = Llama(SMALL), random_tokens(1, 10), small_params()
    positions, cache = jnp.arange(10)[None], model.init_cache(1, 10)
    first = forward(model, params, tokens[:, :5], cache, positions[:, :5], method="decode")
    second = forward(model, params, tokens[:, 5:], first.cache, positions[:, 5:], method="decode")
    logits = jnp.concatenate([first.logits, second.logits], axis=1)
    np.testing.assert_allclose(logits, forward(model, params, tokens), atol=2e-5, rtol=0)  # another order of summation


@pytest.mark.optimized
def test_decoding_loop_updates_the_cache_in_place():
    model, slots, variables = Llama(SMALL), 4096, {"params": small_params()}
    cache = jax.eval_shape(lambda: model.init_cache(2, slots))

    def loop(cache):
        def body(step, cache):
            return model.apply(
                variables, jnp.ones((2, 1), jnp.int32), cache, jnp.full((2, 1), step), method="decode"
            ).cache

        return jax.lax.fori_loop(0, 8, body, cache)

    memory = jax.jit(loop, donate_argnums=0).lower(cache).compile().memory_analysis()
    cache_bytes = 2 * cache.k.size * cache.k.dtype.itemsize
    # One layer's slots are copied (a third of the cache here); a second copy of the cache would exceed this.
    assert memory.temp_size_in_bytes < 0.75 * cache_bytes


def test_scanned_layers_equal_unrolled_layers():
    tokens, stacked = random_tokens(2, 9), small_params()
    unstacked = unstack_layers(stacked)
    jax.tree.map(np.testing.assert_array_equal, stack_layers(unstacked), stacked)
    scanned, unrolled = Llama(SMALL), Llama(SMALL, scan_layers=False)

    def objective(model, params):
        return jnp.square(model.apply({"params": params}, tokens)).mean()

    value, gradient = jax.jit(jax.value_and_grad(functools.partial(objective, scanned)))(stacked)
    unrolled_value, unrolled_gradient = jax.jit(jax.value_and_grad(functools.partial(objective, unrolled)))(unstacked)
    # The same operations, fused differently by the compiler.
    np.testing.assert_allclose(unrolled_value, value, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()),
        stack_layers(unrolled_gradient),
        gradient,
    )


@pytest.mark.optimized
@pytest.mark.slow
def test_remat_policies_trade_memory_and_agree():
    config = dataclasses.replace(SMALL, hidden_size=64, intermediate_size=172, num_layers=6)
    tokens = random_tokens(4, 128)
    params = meta.unbox(jax.jit(Llama(config).init)(jax.random.key(1), tokens[:1, :4]))["params"]
    memory, gradients = {}, {}
    for policy in ("full", "save_qkv", "dots_no_batch", "dots", "none"):
        model = Llama(config, remat=policy)
        gradient = jax.jit(
            jax.grad(lambda p, m=model: jnp.square(m.apply({"params": p}, tokens, method="features")).sum())
        )
        compiled = gradient.lower(params).compile()
        memory[policy], gradients[policy] = compiled.memory_analysis().temp_size_in_bytes, compiled(params)
    assert list(memory) == sorted(memory, key=memory.get), memory
    sizes = list(memory.values())
    assert all(more > 1.1 * less for less, more in itertools.pairwise(sizes)), memory
    for policy in memory:
        # The same operations, fused differently by the compiler.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()),
            gradients[policy],
            gradients["none"],
        )


def test_a_mesh_changes_only_the_sharding():
    model, tokens = Llama(SMALL, remat="full"), random_tokens(4, 8)
    boxed = jax.jit(model.init)(jax.random.key(0), tokens)
    params = meta.unbox(boxed)["params"]

    def loss(params, tokens):
        hidden = model.apply({"params": params}, tokens, method="features")
        kernel = params["lm_head"]["kernel"]
        return next_token_loss(hidden, kernel, tokens, jnp.ones(tokens.shape), vocab_size=97, chunk_size=4).total.mean

    expected = jax.jit(jax.value_and_grad(loss))(params, tokens)
    mesh = sharding.make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])
    sharded = jax.device_put(params, sharding.tree_shardings(boxed, mesh)["params"])
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.LOGICAL_AXIS_RULES):
        batch = jax.device_put(tokens, sharding.batch_sharding(mesh))
        actual = jax.jit(jax.value_and_grad(loss))(sharded, batch)
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), actual[1], expected[1])  # gradients below 1


@pytest.mark.parametrize(("length", "shards"), [(8, 2), (7, 1)])
def test_the_residual_stream_is_sharded_over_tensor_where_its_length_divides(length, shards):
    model, tokens = Llama(SMALL), random_tokens(4, length)
    boxed = jax.jit(model.init)(jax.random.key(0), tokens)
    mesh = sharding.make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])
    sharded = jax.device_put(meta.unbox(boxed)["params"], sharding.tree_shardings(boxed, mesh)["params"])
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.LOGICAL_AXIS_RULES):
        batch = jax.device_put(tokens, sharding.batch_sharding(mesh))
        apply = jax.jit(functools.partial(model.apply, mutable="intermediates"))
        _, state = apply({"params": sharded}, batch)
    (hidden,) = state["intermediates"]["layers"]["hidden"]
    layers, rows, positions, width = hidden.sharding.shard_shape(hidden.shape)
    assert (layers, rows, positions, width) == (SMALL.num_layers, 2, length // shards, SMALL.hidden_size)


def test_released_sizes():
    def count(config: LlamaConfig) -> int:
        shapes = jax.eval_shape(Llama(config).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
        flat = flatten_dict(meta.unbox(shapes)["params"], sep="/")
        padding = 2 * (config.padded_vocab_size - config.vocab_size) * config.hidden_size
        return sum(leaf.size for leaf in flat.values()) - padding

    # LLaMA-7B and 13B have 6,738,415,616 and 13,015,864,320; an image token adds a row to embedding and head.
    assert count(LlamaConfig.seed_8b()) == 6_738_415_616 + 2 * 8194 * 4096
    assert count(LlamaConfig.seed_14b()) == 13_015_864_320 + 2 * 8194 * 5120
    assert (LlamaConfig.seed_8b().rms_norm_eps, LlamaConfig.seed_14b().rms_norm_eps) == (1e-6, 1e-5)
    assert LlamaConfig.seed_8b().padded_vocab_size == 40320


def test_parameters_have_logical_axes():
    boxed = jax.eval_shape(Llama(SMALL).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    names = flatten_dict(nn.get_partition_spec(boxed), sep="/")
    block = {
        "input_layernorm/scale": ("norm",),
        "post_attention_layernorm/scale": ("norm",),
        **{f"self_attn/{name}_proj/kernel": ("embed", "heads") for name in "qkv"},
        "self_attn/o_proj/kernel": ("heads", "embed"),
        "mlp/gate_proj/kernel": ("embed", "mlp"),
        "mlp/up_proj/kernel": ("embed", "mlp"),
        "mlp/down_proj/kernel": ("mlp", "embed"),
    }
    expected = {f"layers/{path}": ("layers", *axes) for path, axes in block.items()}
    expected |= {
        "embed_tokens/embedding": ("vocab", "embed"),
        "lm_head/kernel": ("embed", "vocab"),
        "norm/scale": ("norm",),
    }
    assert {path: tuple(spec) for path, spec in names.items()} == expected


def test_config_round_trip_and_invalid_sizes():
    assert LlamaConfig.from_dict(SMALL.to_dict()) == SMALL
    broken = {**SMALL.to_dict(), "head_dim": 3}
    del broken["num_layers"]
    with pytest.raises(UserError, match=r"config\.json.*unknown key 'head_dim'.*missing key 'num_layers'"):
        LlamaConfig.from_dict(broken, "config.json")
    with pytest.raises(UserError, match="num_kv_heads must divide num_heads: found 3 and 4"):
        dataclasses.replace(SMALL, num_kv_heads=3)
    with pytest.raises(UserError, match="even head size"):
        dataclasses.replace(SMALL, hidden_size=36)
    with pytest.raises(UserError, match="Unknown remat policy 'most': expected one of full"):
        Llama(SMALL, remat="most").init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))


def test_adapters_in_the_wrong_place_are_refused():
    params = small_params()
    adapters = lora.init(params, lora.LoraSpec(LORA_TARGETS), jax.random.key(0))
    with pytest.raises(ValueError, match="without `lora`"):
        Llama(SMALL).apply({"params": params, "lora": adapters}, random_tokens(1, 3))
    with pytest.raises(ValueError, match="expected \\['layers_0'"):
        Llama(SMALL, lora=lora.LoraSpec(LORA_TARGETS), scan_layers=False).apply(
            {"params": unstack_layers(params), "lora": adapters}, random_tokens(1, 3)
        )

"""OPT against the recorded original and transformers; cache, packing and sharding names against itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from seed_jax import sharding
from seed_jax.convert.key_table import assemble, disassemble
from seed_jax.convert.opt.key_table import abstract_params, key_table
from seed_jax.convert.tensors import LazyTensor, TensorDict
from seed_jax.errors import UserError
from seed_jax.losses.next_token import next_token_loss
from seed_jax.models.nn.decoder_only import unstack_layers
from seed_jax.models.nn.lora import LoraSpec
from seed_jax.models.opt.config import OptConfig
from seed_jax.models.opt.model import Opt
from tests.models.opt.cases import GOLDEN, golden_params, recorded
from tests.support import golden, philox

LORA = LoraSpec(rank=8, alpha=16.0, dropout=0.0, targets=("q_proj", "v_proj"))


def masked_loss(model: Opt, variables: dict) -> jax.Array:
    inputs = recorded()
    tokens, labels = jnp.asarray(inputs["input_ids"])[:, :-1], jnp.asarray(inputs["labels"])[:, 1:]
    hidden = model.apply(variables, tokens, method="features")
    kernel = model.head_kernel(variables["params"])
    mask = labels != -100
    return next_token_loss(hidden, kernel, jnp.maximum(labels, 0), mask, vocab_size=566, chunk_size=16).total.mean


def golden_adapters(name: str) -> dict:
    """Read recorded adapters, or their gradients, into the tree of the scanned layers."""
    tensors = golden.tensors(f"opt_tiny/{name}.safetensors")

    def stack(projection: str, matrix: str) -> np.ndarray:
        prefix = "base_model.model.model.decoder.layers"
        names = [f"{prefix}.{i}.self_attn.{projection}.lora_{matrix}.default.weight" for i in range(3)]
        return np.stack([tensors[name].T for name in names])

    projections = {p: {"a": stack(p, "A"), "b": stack(p, "B")} for p in ("q_proj", "v_proj")}
    return {"layers": {"self_attn": projections}}


@pytest.mark.parametrize("scan_layers", [True, False])
def test_logits_equal_the_original(scan_layers):
    expected = recorded()
    params = golden_params() if scan_layers else unstack_layers(golden_params())
    model = Opt(GOLDEN, scan_layers=scan_layers)
    logits = jax.jit(model.apply)({"params": params}, expected["input_ids"])
    valid = expected["attention_mask"] == 1
    np.testing.assert_allclose(logits[valid], expected["logits"][valid], atol=1e-4, rtol=0)


def test_loss_and_gradients_equal_the_original():
    model = Opt(GOLDEN, remat="full")
    loss, gradients = jax.jit(jax.value_and_grad(lambda p: masked_loss(model, {"params": p})))(golden_params())
    assert abs(loss - recorded()["loss"][0]) < 1e-5
    actual = dict(disassemble(key_table(GOLDEN), gradients))
    expected = golden.tensors("opt_tiny/grads.safetensors")
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        if name.endswith("k_proj.bias"):  # zero up to rounding: the softmax does not depend on it
            assert np.abs(actual[name]).max() < 1e-6, name
        else:
            assert np.linalg.norm(actual[name] - gradient) < 1e-4 * np.linalg.norm(gradient), name
    assert not gradients["embed_tokens"]["embedding"][566:].any()


def test_adapters_and_their_gradients_equal_the_original():
    model, adapters, expected = Opt(GOLDEN, lora=LORA), golden_adapters("lora.adapter"), recorded()
    variables = {"params": golden_params(), "lora": adapters}
    logits = jax.jit(model.apply)(variables, expected["input_ids"])
    valid = expected["attention_mask"] == 1
    np.testing.assert_allclose(logits[valid], expected["lora_logits"][valid], atol=1e-4, rtol=0)
    loss, gradients = jax.jit(jax.value_and_grad(lambda lora: masked_loss(model, variables | {"lora": lora})))(adapters)
    assert abs(loss - expected["lora_loss"][0]) < 1e-5
    for path, gradient in flatten_dict(golden_adapters("lora.grads")).items():
        actual = flatten_dict(gradients)[path]
        assert np.linalg.norm(actual - gradient) < 1e-4 * np.linalg.norm(gradient), path


def test_prefix_of_projected_code_vectors_equals_the_original():
    expected = recorded()
    prefix = expected["code_vectors"] @ expected["fc.weight"].T + expected["fc.bias"]
    apply = jax.jit(lambda params, ids, prefix: Opt(GOLDEN).apply({"params": params}, ids, prefix=prefix))
    logits = apply(golden_params(), expected["prefix_ids"], prefix)
    np.testing.assert_allclose(logits, expected["prefix_logits"], atol=1e-4, rtol=0)


def test_cached_decoding_equals_one_pass():
    model = Opt(GOLDEN)
    tokens = jnp.asarray(recorded()["input_ids"])[:1, :9]
    whole = jax.jit(model.apply)({"params": golden_params()}, tokens)

    @functools.partial(jax.jit, static_argnames="prefill")
    def decode(tokens, cache, positions, prefill):
        return model.apply({"params": golden_params()}, tokens, cache, positions, prefill=prefill, method="decode")

    output = decode(tokens[:, :6], model.init_cache(1, 16), jnp.arange(6)[None], prefill=True)
    np.testing.assert_allclose(output.logits, whole[:, :6], atol=1e-5)
    for index in range(6, 9):
        output = decode(tokens[:, index : index + 1], output.cache, jnp.array([[index]]), prefill=False)
        np.testing.assert_allclose(output.logits[:, 0], whole[:, index], atol=1e-5)


def test_packed_sequences_do_not_see_each_other():
    model, params = Opt(GOLDEN), {"params": golden_params()}
    first, second = np.arange(3, 8)[None], np.arange(30, 37)[None]
    packed = jnp.asarray(np.concatenate([first, second], 1))
    segments = jnp.asarray([[1] * 5 + [2] * 7])
    positions = jnp.asarray([[*range(5), *range(7)]])
    logits = jax.jit(model.apply)(params, packed, segments, positions)
    for part, alone in ((logits[:, :5], first), (logits[:, 5:], second)):
        np.testing.assert_allclose(part, jax.jit(model.apply)(params, jnp.asarray(alone)), atol=1e-5)


def test_post_norm_with_projections_equals_transformers():
    """The architecture of OPT-350m."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 97, "hidden_size": 24, "ffn_dim": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
    config = transformers.OPTConfig(
        **sizes, word_embed_proj_dim=16, do_layer_norm_before=False, max_position_embeddings=32
    )
    reference = transformers.OPTForCausalLM(config).eval()
    for name, parameter in reference.named_parameters():
        noise = 0.2 * philox.normal(0, name, tuple(parameter.shape))
        parameter.data = torch.from_numpy(noise + ("norm.weight" in name))
    ours = OptConfig(97, 24, 40, 2, 3, max_length=32, word_embed_size=16, pre_norm=False, final_norm=False)
    arrays = {name: tensor.numpy() for name, tensor in reference.state_dict().items() if name != "lm_head.weight"}
    tensors = TensorDict({n: LazyTensor(a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()}, "test")
    params = assemble(key_table(ours), tensors, abstract_params(ours))
    assert {name: array.shape for name, array in disassemble(key_table(ours), params)} == {
        name: array.shape for name, array in arrays.items()
    }
    tokens = np.random.default_rng(0).integers(3, 97, (2, 11))
    with torch.no_grad():
        expected = reference(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(jax.jit(Opt(ours).apply)({"params": params}, tokens), expected, atol=1e-4, rtol=0)


def test_full_size_counts_and_axes():
    config = OptConfig.seed_2b7()
    boxed = jax.eval_shape(Opt(config).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    sizes = {name: np.prod(leaf.shape) for name, leaf in flatten_dict(sharding.unbox(boxed), sep="/").items()}
    padding = (config.padded_vocab_size - 50272) * config.hidden_size
    code_vectors = sum(size for name, size in sizes.items() if name.startswith("code_"))  # SEED-OPT's, not OPT's
    assert code_vectors == 8192 * 32 + 32 * 2560 + 2560
    assert sum(sizes.values()) - padding - code_vectors == 2_651_596_800  # facebook/opt-2.7b
    assert boxed["layers"]["fc1"]["kernel"].names == ("layers", "embed", "mlp")
    assert boxed["embed_tokens"]["embedding"].names == ("vocab", "embed")


def test_impossible_sizes_are_refused():
    with pytest.raises(UserError, match="divisible by num_heads"):
        OptConfig(97, 25, 40, 2, 3)
    with pytest.raises(UserError, match="no final norm"):
        OptConfig(97, 24, 40, 2, 3, pre_norm=False)

"""The image tokenizer against every recorded tensor of the original; sizes, dtypes, configuration, sharding."""

import dataclasses
import json
import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from flax.traverse_util import flatten_dict

from seed_jax import sharding
from seed_jax.convert.tokenizer.key_table import key_table
from seed_jax.errors import UserError
from seed_jax.models.tokenizer import vq
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizer, SeedTokenizerConfig, abstract_params
from seed_jax.precision import Precision
from tests.models.tokenizer.cases import image, imported, random_like, recorded
from tests.support import golden

# The tolerances of goldens/tokenizer_tiny/README.md: about ten times the difference between the original in float32
# and in float64. The longest prefix of a tensor's name decides.
TOLERANCES = {
    "vit": 1e-4,
    "ln_vision": 1e-4,
    "qformer": 1e-4,
    "prequant": 1e-4,
    "quant": 1e-4,
    "decode_task_layer": 1e-5,
    "blocks_image": 5e-5,
    "image_down": 5e-5,
    "reverse": 5e-5,
    "generation_embedding": 5e-5,
    "vq_loss": 1e-6,
    "margin": 1e-4,
    "best_sq_distance": 1e-4,
}
# With residual streams scaled down so that the epsilons of the norms matter.
EPS_TOLERANCES = {
    "vit_features": 1e-6,
    "ln_vision": 1e-4,
    "qformer": 1e-4,
    "prequant": 1e-4,
    "blocks_image": 1e-5,
    "generation_embedding": 1e-5,
}


def run(params, config, image, codes, precision=Precision()):
    """Return every tensor that the goldens record, under its name."""
    model = SeedTokenizer(config, precision)

    @jax.jit
    def everything(params, image, codes):
        variables = {"params": params}
        encoded, state = model.apply(variables, image, method="encode", mutable="intermediates")
        features = model.apply(variables, image, method="features")
        embedding, decoding = model.apply(variables, codes, method="embed_codes", mutable="intermediates")
        up = model.apply(variables, encoded.quantized.vectors, method=lambda m, x: m.decode_task(x))
        up_from_codes = model.apply(variables, codes, method="decode_codes")
        return encoded, features, embedding, up, up_from_codes, state["intermediates"], decoding["intermediates"]

    encoded, features, embedding, up, up_from_codes, state, decoding = everything(params, image, codes)
    blocks = state["vit"]["blocks"]["layers"]["hidden"][0]
    distances = np.sort(vq.squared_distances(encoded.prequant, params["codebook"]), -1)
    out = {
        "vit_patch_embed": state["vit"]["patch_embed"]["hidden"][0],
        **{f"vit_block_{i}": block for i, block in enumerate(blocks)},
        "vit_features": blocks[-1],
        "ln_vision": features,
        "qformer_embeddings": state["qformer"]["embeddings"][0],
        **layers_of(state["qformer"], "qformer_layer"),
        "qformer_last_hidden_state": encoded.embeddings,
        "prequant": encoded.prequant,
        "indices": encoded.codes,
        "quant": encoded.quantized.vectors,
        "vq_loss": encoded.quantized.loss.mean()[None],
        "best_sq_distance": distances[..., 0],
        "margin": distances[..., 1] - distances[..., 0],
        "decode_task_layer": up,
        "decode_task_layer_from_codes": up_from_codes,
        **{f"blocks_image_{i}": block for i, block in enumerate(decoding["image_blocks"]["layers"]["hidden"][0])},
        "generation_embedding": embedding,
    }
    if config.head == "mlp":
        return {**out, "image_down": decoding["image_down"][0]}
    return {**out, **layers_of(decoding["reverse_qformer"], "reverse_layer")}


def layers_of(state, name: str) -> dict:
    """Unstack the groups: entry g of layer_m is layer g * members + m."""
    members = [group["hidden"][0] for _, group in sorted(state["layers"].items())]
    count = len(members)
    return {f"{name}_{g * count + m}": x for m, stack in enumerate(members) for g, x in enumerate(stack)}


def tolerance(name: str, tolerances: dict[str, float]) -> float:
    return tolerances[max((prefix for prefix in tolerances if name.startswith(prefix)), key=len)]


@pytest.mark.parametrize("variant", ["release", "qformer_image"])
def test_every_recorded_tensor_equals_the_original(variant):
    expected, tokenizer = recorded(variant), imported(variant)
    ours = run(tokenizer.params, tokenizer.config, image(), jnp.asarray(expected["indices"]))
    assert ours.keys() == expected.keys()
    for name in expected.keys() - {"indices"}:
        atol = tolerance(name, TOLERANCES)
        np.testing.assert_allclose(ours[name], expected[name], rtol=0, atol=atol, err_msg=name)
    np.testing.assert_array_equal(ours["indices"], expected["indices"])


def test_every_epsilon_equals_the_original():
    """With scaled-down residual streams, a wrong epsilon changes some tensor by at least 70 times its tolerance."""
    params = jax.tree.map(np.copy, imported("release").params)
    flat = flatten_dict(params, sep="/")
    scales = golden.load_json("tokenizer_tiny/eps.scales.json")
    for entry in key_table(imported("release").config):
        for index, name in enumerate(entry.names):
            if name in scales:
                part = flat[entry.path] if entry.layers is None else flat[entry.path][index : index + 1]
                part *= np.float32(scales.pop(name))
    assert not scales
    expected = golden.tensors("tokenizer_tiny/eps.outputs.safetensors")
    ours = run(params, imported("release").config, image(), jnp.asarray(recorded("release")["indices"]))
    ours["generation_embedding_of_release_indices"] = ours["generation_embedding"]
    for name in expected:
        atol = tolerance(name, EPS_TOLERANCES)
        np.testing.assert_allclose(ours[name], expected[name], rtol=0, atol=atol, err_msg=name)


def test_full_size_has_the_published_parameter_counts():
    params = abstract_params(SeedTokenizerConfig.full())

    def count(tree):
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

    assert count(params) == 1_149_999_040 - 512  # the published total counts 512 position ids
    assert count(params["vit"]) == 985_894_528
    assert count(params["qformer"]) - 32 * 768 == 105_138_176 - 512
    assert count(params["recon_blocks"]) == count(params["image_blocks"]) == 28_351_488
    assert count(params["codebook"]) == 262_144

    def shapes(params, image):
        decoded = SeedTokenizer(SeedTokenizerConfig.full()).apply({"params": params}, image)
        return decoded.encoded.codes, decoded.generation_embedding, decoded.reconstruction

    outputs = jax.eval_shape(shapes, params, jnp.zeros((2, 224, 224, 3)))
    assert [x.shape for x in outputs] == [(2, 32), (2, 1024), (2, 32, 768)]


def test_full_reverse_head_has_four_layers():
    params = abstract_params(SeedTokenizerConfig.full("reverse_qformer"))
    reverse = params["reverse_qformer"]
    assert reverse["query_tokens"].shape == (1, 768)
    assert reverse["layers"]["layer_1"]["query_ffn"]["mlp"]["fc1"]["kernel"].shape == (2, 768, 3072)
    assert params["image_proj"]["kernel"].shape == (768, 1024)


def tiny(head: str):
    config = SeedTokenizerConfig.tiny(head)
    return config, random_like(abstract_params(config))


@pytest.mark.parametrize("head", ["mlp", "reverse_qformer"])
def test_tiny_encodes_decodes_and_reconstructs(head):
    config, params = tiny(head)
    model = SeedTokenizer(config)
    pixels = jax.random.normal(jax.random.key(0), (2, config.image_size, config.image_size, 3))
    decoded = jax.jit(model.apply)({"params": params}, pixels)
    codes = decoded.encoded.codes
    assert codes.shape == (2, config.codes_per_image)
    assert codes.min() >= 0
    assert codes.max() < config.num_codes
    embedding = jax.jit(lambda c: model.apply({"params": params}, c, method="embed_codes"))(codes)
    # The straight-through vector equals the code's up to rounding.
    np.testing.assert_allclose(embedding, decoded.generation_embedding, atol=1e-5)
    reconstruction = jax.jit(lambda c: model.apply({"params": params}, c, method="reconstruct_codes"))(codes)
    np.testing.assert_allclose(reconstruction, decoded.reconstruction, atol=1e-5)
    assert not np.allclose(reconstruction, decoded.encoded.embeddings)


def test_bfloat16_compute_keeps_what_codes_depend_on_in_float32():
    config, params = tiny("reverse_qformer")
    model = SeedTokenizer(config, Precision(compute="bfloat16"))
    pixels = jnp.zeros((1, config.image_size, config.image_size, 3))
    jaxpr = jax.make_jaxpr(lambda x: model.apply({"params": params}, x))(pixels)
    dtypes = {name: {str(v.aval.dtype) for v in inputs} for name, inputs in inputs_by_primitive(jaxpr.jaxpr).items()}
    assert dtypes["exp"] == {"float32"}  # softmax
    assert dtypes["rsqrt"] == {"float32"}  # every LayerNorm, ln_vision among them
    assert dtypes["argmin"] == {"float32"}  # distances to the codes
    assert dtypes["tanh"] == {"float32", "bfloat16"}  # before quantization, and after
    assert dtypes["erfc"] == {"bfloat16"}  # all else is in the compute dtype


def test_three_pass_matmuls_leave_projection_and_distances_exact():
    config, params = tiny("mlp")
    model = SeedTokenizer(config, Precision(compute="bfloat16_3x"))
    pixels = jnp.zeros((1, config.image_size, config.image_size, 3))
    jaxpr = jax.make_jaxpr(lambda x: model.apply({"params": params}, x, method="encode").codes)(pixels)
    exact = {}
    for equation in equations(jaxpr.jaxpr):
        if equation.primitive.name == "dot_general":
            three_passes = "BF16_BF16_F32_X3" in str(equation.params["precision"])
            exact.setdefault(not three_passes, []).append(equation.invars[1].aval.shape)
            assert all(operand.aval.dtype == jnp.float32 for operand in equation.invars)
    width = config.qformer.width
    assert sorted(exact[True]) == sorted(
        [(width, width), (width, config.code_width), (config.num_codes, config.code_width)]
    )
    assert len(exact[False]) > 10


def equations(jaxpr):
    """Yield the equations of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def inputs_by_primitive(jaxpr) -> dict[str, list]:
    """Collect the first input of every equation, also of nested jaxprs, by the name of its primitive."""
    inputs = {}
    for equation in equations(jaxpr):
        inputs.setdefault(equation.primitive.name, []).extend(equation.invars[:1])
    return inputs


def test_bfloat16_compute_changes_few_codes():
    """bfloat16 has 8 bits of precision: only near ties change."""
    tokenizer = imported("release")
    model = SeedTokenizer(tokenizer.config, Precision(compute="bfloat16"))
    encoded = jax.jit(lambda x: model.apply({"params": tokenizer.params}, x, method="encode"))(image())
    assert encoded.prequant.dtype == jnp.float32
    assert (np.asarray(encoded.codes) == recorded("release")["indices"]).mean() > 0.9


def test_configuration_round_trips_through_json():
    for config in (SeedTokenizerConfig.full(), SeedTokenizerConfig.tiny("reverse_qformer")):
        assert SeedTokenizerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_configuration_errors_are_listed_together():
    data = SeedTokenizerConfig.tiny().to_dict()
    data["vit"]["blocks"]["head"] = data["vit"]["blocks"].pop("heads")
    data["num_codes"] = "128"
    data["qformer"]["causal"] = 1
    with pytest.raises(UserError) as raised:
        SeedTokenizerConfig.from_dict(data, "model/config.json")
    message = str(raised.value)
    assert message.startswith("model/config.json does not describe a SeedTokenizerConfig: ")
    for part in (
        "unknown key 'vit.blocks.head'",
        "missing key 'vit.blocks.heads'",
        "key 'num_codes' should hold a int, found '128'",
        "key 'qformer.causal' should hold a bool, found 1",
    ):
        assert part in message


def test_inconsistent_widths_are_refused():
    config = SeedTokenizerConfig.tiny()
    with pytest.raises(UserError, match=r"qformer\.memory_width are 64 and 32, expected 64 .*and 64"):
        dataclasses.replace(config, qformer=dataclasses.replace(config.qformer, memory_width=32))
    with pytest.raises(UserError, match=r"'linear'.*mlp, reverse_qformer"):
        dataclasses.replace(config, head="linear")
    with pytest.raises(UserError, match="'reverse_qformer' has no sizes"):
        dataclasses.replace(config, head="reverse_qformer")


@pytest.mark.parametrize("shape", [{"fsdp": 4, "tensor": 2}, {"fsdp": 8}])
@pytest.mark.parametrize("head", ["mlp", "reverse_qformer"])
def test_no_large_tensor_of_the_full_size_is_replicated(shape, head):
    config = SeedTokenizerConfig.full(head)
    mesh = sharding.make_mesh(shape)
    boxed = jax.eval_shape(SeedTokenizer(config).init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
    assert not sharding.replicated_tensors(meta.unbox(boxed), sharding.tree_shardings(boxed, mesh))

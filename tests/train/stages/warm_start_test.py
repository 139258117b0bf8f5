"""Where tokenizer training starts from: official files over fresh weights, imported tokenizers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from seed_jax import sharding
from seed_jax.checkpoint import model_dir
from seed_jax.convert.key_table import disassemble
from seed_jax.convert.tokenizer.key_table import image_text_table
from seed_jax.errors import UserError
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig
from seed_jax.train.config.tokenizer import InitFromConfig
from seed_jax.train.stages import warm_start
from seed_jax.train.stages.codebook import init
from seed_jax.train.stages.codebook.model import CodebookModel, CodebookSizes
from seed_jax.train.stages.qformer import QFormerStage
from tests.support.configs import config_for

WORDS = 30


def tiny(name="tokenizer_qformer", **init_from):
    return config_for(f"{name}:tiny", **{f"init_from.{kind}": path for kind, path in init_from.items()})


@functools.cache
def sizes() -> CodebookSizes:
    config = tiny("tokenizer_codebook")
    tokenizer = SeedTokenizerConfig.tiny()
    qformer = dataclasses.replace(tokenizer.qformer, vocab_size=WORDS, dropout=config.model.dropout)
    return CodebookSizes(dataclasses.replace(tokenizer, qformer=qformer), joint_width=config.model.joint_width)


@functools.cache
def abstract():
    return sharding.unbox(CodebookModel(sizes()).abstract())


def variables(fill: float):
    return jax.tree.map(lambda leaf: jnp.full(leaf.shape, fill, leaf.dtype), abstract())


def official(tree, fill: float) -> dict[str, np.ndarray]:
    """Return constant weights of the image-text model under official names."""
    table = image_text_table(sizes().image_text)
    params = CodebookModel.image_text_params(tree)
    return {name: np.full_like(value, fill) for name, value in disassemble(table, params)}


def write(path, tensors):
    save_file(tensors, path)
    return str(path)


@pytest.fixture
def imported(tmp_path):
    """What `seed-jax import tokenizer` makes: an image tokenizer, and the text side set aside."""
    tokenizer = SeedTokenizerConfig.tiny()
    params = sharding.unbox(CodebookModel(CodebookSizes(tokenizer)).abstract())["params"]
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), params)
    extras = {
        name: value
        for name, value in official(variables(0.0), 2.0).items()
        if name in ("temp", "vision_proj.weight", "vision_proj.bias", "text_proj.weight", "text_proj.bias")
        or "embeddings.word" in name
        or "embeddings.position" in name
        or (("intermediate." in name or ".output." in name) and "attention" not in name)
    }
    write(tmp_path / "extras.safetensors", extras)
    files = {warm_start.EXTRAS_FILE: tmp_path / "extras.safetensors"}
    return str(model_dir.save(tmp_path / "model", "seed_tokenizer", {"sizes": tokenizer.to_dict()}, ones, files=files))


def test_stage_two_goes_on_from_an_imported_tokenizer_with_its_text_side(imported):
    config = tiny("tokenizer_codebook", model=imported)
    found = init.architecture(config, WORDS)
    assert found == sizes()
    loaded = init.load_weights(config.init_from, found, variables(0.0))
    assert {float(leaf.mean()) for leaf in jax.tree.leaves(loaded["retrieval"])} == {2.0}
    params = loaded["params"]
    assert float(params["qformer"]["word_embeddings"].mean()) == 2.0
    assert float(params["qformer"]["layers"]["layer_0"]["text_ffn"]["mlp"]["fc1"]["kernel"].mean()) == 2.0
    assert float(params["qformer"]["query_tokens"].mean()) == float(params["codebook"].mean()) == 1.0


def test_size_of_a_codebook_that_starts_random(imported, tmp_path):
    large = {"model.num_codes": 512}
    assert init.architecture(config_for("tokenizer_codebook:tiny", **large), WORDS).tokenizer.num_codes == 512
    stage_one = QFormerStage(tiny())
    model_dir.save(tmp_path / "one", stage_one.kind, stage_one.model_config(), {"temperature": np.zeros(1)})
    paths = {"init_from.model": str(tmp_path / "one")}
    config = config_for("tokenizer_codebook:tiny", **large, **paths)
    assert init.architecture(config, WORDS).tokenizer.num_codes == 512
    config = config_for("tokenizer_codebook:tiny", **large, **{"init_from.model": imported})
    with pytest.raises(UserError, match=r"model.num_codes is 512: set it to 0"):
        init.architecture(config, WORDS)


@pytest.mark.slow
def test_stage_one_goes_on_from_an_imported_tokenizer(imported):
    stage = QFormerStage(tiny(model=imported))
    vocab_size = stage.model.config.qformer.vocab_size
    expected = dataclasses.replace(sizes().image_text.qformer, vocab_size=vocab_size)
    assert stage.model.config == dataclasses.replace(sizes().image_text, qformer=expected)
    # The golden's text side has a vocabulary of its own size, which `prepare` takes from the data.
    stage.model = stage.model.clone(config=sizes().image_text)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda leaf: device, sharding.unbox(stage.abstract_variables()))
    params = stage.init_variables(jax.random.key(0), shardings)["params"]
    assert float(params["temperature"]) == 2.0
    assert float(params["vit"]["pos_embed"].mean()) == 1.0


def test_official_files_one_over_the_other(tmp_path):
    every = official(variables(0.0), 1.0)
    vit = {name.removeprefix("visual_encoder."): v for name, v in every.items() if name.startswith("visual_encoder.")}
    rest = {name: np.asarray(2 * v) for name, v in every.items() if not name.startswith("visual_encoder.")}
    init_from = InitFromConfig(
        vit=write(tmp_path / "eva.safetensors", vit),
        blip2=write(tmp_path / "blip2.safetensors", rest),
        quantizer=write(
            tmp_path / "seed.safetensors", {name: np.asarray(v + 1) for name, v in rest.items() if name != "temp"}
        ),
    )
    params = CodebookModel.image_text_params(variables(0.0))
    found = warm_start.load_foreign(init_from, image_text_table(sizes().image_text), params)
    assert float(found["vit"]["cls_token"].mean()) == 1.0
    assert float(found["qformer"]["query_tokens"].mean()) == 3.0
    assert float(found["temperature"]) == 2.0  # only BLIP-2's file had it


def test_what_does_not_fit_is_listed():
    tree = {"a": jnp.zeros((2, 3)), "b": {"c": jnp.zeros(4)}}
    with pytest.raises(UserError, match=r"of F do not fit the model: a is \(3, 2\), expected \(2, 3\); b/d\."):
        warm_start.overlay(tree, {"a": np.zeros((3, 2)), "b": {"d": np.zeros(1)}}, "F")
    after = warm_start.overlay(tree, {"b": {"c": np.ones(4)}}, "F")
    np.testing.assert_array_equal(after["b"]["c"], np.ones(4))

"""Stage I against the original: loss, gradients, optimizer steps, and two ranks on two devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seed_jax import sharding
from seed_jax.convert.key_table import assemble, expected_shapes
from seed_jax.convert.tensors import check_tensors, open_tensors
from seed_jax.convert.tokenizer.key_table import image_text_table
from seed_jax.losses.tokenizer import contrastive_loss, smoothed_cross_entropy
from seed_jax.models.tokenizer.image_text import ImageText, ImageTextConfig
from seed_jax.models.tokenizer.qformer import QFormerConfig
from seed_jax.models.tokenizer.vit import BlockConfig, VitConfig
from seed_jax.train.stage import LossOutput
from seed_jax.train.stages.qformer import QFormerStage
from tests.support import golden
from tests.support.configs import config_for
from tests.train.stages import official_steps as official

FOLDER = "tokenizer_train_tiny/"
LOSS_ATOL = 1e-4  # of the golden's README; reached: 3e-6
GRADIENT_RTOL = 1e-4  # of each tensor's norm; reached: 1e-5
STEP_ATOL = 5e-5  # half a learning-rate step of 1e-4, where gradients near zero decide its sign


@functools.cache
def model() -> ImageText:
    sizes = golden.load_json(f"{FOLDER}config.json")
    qformer = QFormerConfig(
        width=sizes["qformer_hidden"],
        depth=sizes["qformer_layers"],
        heads=sizes["qformer_heads"],
        mlp_width=sizes["qformer_intermediate"],
        memory_width=sizes["vit_width"],
        dropout=0.0,
        vocab_size=sizes["bert_vocab_size"] + 1,
        max_positions=sizes["max_position_embeddings"],
    )
    blocks = BlockConfig(sizes["vit_width"], sizes["vit_depth"], sizes["vit_heads"], sizes["vit_mlp_hidden"])
    vit = VitConfig(sizes["image_size"], sizes["patch_size"], blocks)
    return ImageText(ImageTextConfig(vit, qformer, joint_width=sizes["stage1_embed_dim"]))


@functools.cache
def model_stage() -> QFormerStage:
    """The real stage, with the golden's architecture."""
    stage = QFormerStage(config_for("tokenizer_qformer:tiny"))
    stage.model = model()
    return stage


@functools.cache
def setup():
    """Return (variables, batch, key table)."""
    table = image_text_table(model().config)
    shapes = sharding.unbox(model_stage().abstract_variables())["params"]
    tensors = open_tensors(golden.path(f"{FOLDER}stage1.weights.safetensors"))
    left = check_tensors(expected_shapes(table, shapes), tensors, allow_unexpected=True)
    # The captioning head, which stage I does not use, and a buffer.
    assert all(name.startswith("Qformer.cls.predictions.") or name.endswith("position_ids") for name in left)
    inputs = golden.tensors(f"{FOLDER}stage1.inputs.safetensors")
    batch = {
        "image": inputs["image"].transpose(0, 2, 3, 1),
        "text": inputs["input_ids"],
        "text_mask": inputs["attention_mask"] > 0,
    }
    variables = {"params": assemble(table, tensors, shapes)}
    return jax.tree.map(jnp.asarray, variables), jax.tree.map(jnp.asarray, batch), table


def stage(through_gather: bool = False):
    is_trained = model_stage().is_trainable

    def loss(variables, batch, key):
        features = model().apply(variables, batch["image"], batch["text"], batch["text_mask"])
        found = contrastive_loss(features.image, features.text, features.temperature, through_gather=through_gather)
        return LossOutput(found.total, {})

    return official.LossStage(loss, is_trained)


def test_features_and_loss():
    variables, batch, _ = setup()
    expected = golden.tensors(f"{FOLDER}stage1.outputs.safetensors")
    features = jax.jit(model().apply)(variables, *batch.values())
    similarities = features.image @ features.text.T / features.temperature
    # Similarities are divided by 0.07, which widens float32's 1e-6 (README: f32 and f64 differ by 9e-6).
    np.testing.assert_allclose(similarities, expected["sim_i2t"], atol=1e-4)
    np.testing.assert_allclose(similarities.T, expected["sim_t2i"], atol=1e-4)
    found = contrastive_loss(features.image, features.text, features.temperature)
    assert float(found.total.mean) == pytest.approx(float(expected["loss"]), abs=LOSS_ATOL)
    _, ranks = two_ranks()
    terms = sum(smoothed_cross_entropy(each, 0.1) for each in (similarities, similarities.T)) / 2
    np.testing.assert_allclose(terms.reshape(2, 3).mean(1), ranks, atol=LOSS_ATOL)  # a rank averages its own rows


def two_ranks():
    """Return (gradients averaged over the ranks, losses of the ranks)."""
    expected = golden.tensors(f"{FOLDER}stage1.two_ranks.safetensors")
    gradients = {name.removeprefix("grad."): value for name, value in expected.items() if name.startswith("grad.")}
    return gradients, [expected["loss_rank0"], expected["loss_rank1"]]


@pytest.mark.slow
def test_gradients_on_one_device_and_on_two():
    """Stopping the gradient at the candidates is what gathering without gradient and averaging over ranks does."""
    variables, batch, table = setup()
    compute = official.gradient_function(stage(), table)
    one = compute(variables, batch)
    expected = golden.tensors(f"{FOLDER}stage1.grads.safetensors")
    official.assert_gradients(one, expected, GRADIENT_RTOL)
    assert one.keys() == expected.keys()  # nothing else is trained
    two = compute(variables, batch, sharding.make_mesh({"replica": 2}, jax.devices()[:2]))
    official.assert_gradients(two, two_ranks()[0], GRADIENT_RTOL)


@pytest.mark.slow
def test_gradients_through_the_gather():
    variables, batch, table = setup()
    found = official.gradient_function(stage(through_gather=True), table)(variables, batch)
    expected = golden.tensors(f"{FOLDER}stage1.grads_through_gather.safetensors")
    official.assert_gradients(found, expected, GRADIENT_RTOL)


@pytest.mark.slow
def test_three_steps():
    variables, batch, table = setup()
    after = official.steps(stage(), variables, batch, 3)
    expected = golden.tensors(f"{FOLDER}stage1.after_3_adamw_steps.safetensors")
    grads = golden.tensors(f"{FOLDER}stage1.grads.safetensors")
    official.assert_parameters(official.named(table, after["params"]), expected, grads, STEP_ATOL)

"""Drawing with Stable Diffusion 1.4: the whole way from SEED-1's embeddings, and prompts."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest

from seed_jax import cli
from seed_jax.convert.diffusion.stable_diffusion import import_stable_diffusion, open_stable_diffusion, read_config
from seed_jax.data.text.clip import ClipVocabulary
from seed_jax.errors import UserError
from seed_jax.inference.drawing.drawer import Drawer
from seed_jax.inference.drawing.request import DrawOptions
from seed_jax.inference.memory_plan import draw_bytes
from tests.models.diffusion.cases import channels_last
from tests.support import golden

FOLDER = "sd14_tiny/diffusion_model"
FAST = DrawOptions(sampler="dpmpp", steps=2)


@functools.cache
def recorded() -> dict[str, np.ndarray]:
    return golden.tensors("sd14_tiny/outputs.safetensors")


@functools.cache
def drawer() -> Drawer:
    imported = import_stable_diffusion(golden.path(FOLDER))
    return Drawer(imported.config, imported.params, vocabulary=imported.vocabulary)


@pytest.mark.slow
def test_images_equal_the_original():
    latents = channels_last(recorded()["latents"])
    images = drawer().draw(recorded()["embeddings"], [0, 1], DrawOptions(steps=5), latents=latents, batch_size=2)
    expected = np.round(recorded()["pndm_5_image"] * 255)
    assert np.abs(images - expected).max() <= 1


@pytest.mark.slow
def test_command_writes_a_model_directory_that_draws(tmp_path: Path):
    source = ["--from", str(golden.path(FOLDER))]
    assert cli.main(["import", "sd", *source, "--out", str(tmp_path / "sd")]) == 0
    loaded = Drawer.load(tmp_path / "sd")
    assert loaded.config == drawer().config
    assert draw_bytes(loaded.config) > 0
    embeddings = recorded()["embeddings"][:1]
    np.testing.assert_array_equal(loaded.draw(embeddings, [3], FAST), drawer().draw(embeddings, [3], FAST))


@pytest.mark.slow
def test_a_prompt_is_drawn_from_its_text_states():
    first, second = drawer().draw_prompts(["a dog", "a cat"], [1, 1], FAST)
    assert first.shape == (128, 128, 3)
    assert (first != second).any()


def test_wrong_inputs_are_refused():
    embeddings = recorded()["embeddings"]
    with pytest.raises(UserError, match=r"expected \(B, 77, 768\)"):
        drawer().draw(np.zeros((1, 1024), np.float32), [0], FAST)
    with pytest.raises(UserError, match="in place of a prompt"):
        drawer().draw(embeddings, [0, 1], FAST, prompts="a dog")
    with pytest.raises(UserError, match="noise level is 5"):
        drawer().draw(embeddings, [0, 1], dataclasses.replace(FAST, noise_level=5))


def test_other_folders_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="unCLIP decoder"):
        open_stable_diffusion(golden.path("unclip_tiny/diffusion_model"))
    with pytest.raises(UserError, match="lacks unet"):
        open_stable_diffusion(tmp_path)


def edited(folder: Path, unet: dict, text: dict) -> Path:
    """Copy the configs of the recorded folder with changes."""
    for name, changes in (("unet", unet), ("text_encoder", text), ("vae", {}), ("scheduler", {})):
        file = next((golden.path(FOLDER) / name).glob("*config.json"))
        (folder / name).mkdir()
        (folder / name / file.name).write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


def test_other_releases_are_named(tmp_path: Path, caplog):
    vocabulary = ClipVocabulary.load(golden.path(FOLDER) / "tokenizer")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    fits = read_config(edited(tmp_path / "a", {"_name_or_path": "runwayml/stable-diffusion-v1-5"}, {}), vocabulary)
    assert fits == drawer().config
    assert "stable-diffusion-v1-5" in caplog.text
    second = edited(tmp_path / "b", {"cross_attention_dim": 1024}, {"hidden_size": 1024, "num_attention_heads": 16})
    assert read_config(second, vocabulary).embedding_shape == (77, 1024)
    assert "Stable Diffusion 2" in caplog.text

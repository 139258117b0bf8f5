"""`seed-jax import sd` and `seed-jax export sd`: reports, strict loading in diffusers, training workdirs, refusals."""

import logging
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seed_jax import cli
from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.store import Store
from seed_jax.convert.diffusion.stable_diffusion import import_stable_diffusion
from tests.support import golden

FOLDER = "sd14_tiny/diffusion_model"
pytestmark = pytest.mark.slow  # networks of PyTorch beside ours


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    out = tmp_path_factory.mktemp("sd") / "model"
    assert cli.main(["import", "sd", "--from", str(golden.path(FOLDER)), "--out", str(out), "--verify", "tensors"]) == 0
    return out


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("sd") / "out"
    assert cli.main(["export", "sd", "--model", str(model), "--out", str(out), "--verify"]) == 0
    return out


def test_reports_pass(model, exported):
    assert "passed" in (model / "parity.md").read_text()
    report = (exported / "parity.md").read_text()
    for part in ("unet", "vae", "text_encoder"):  # each compared by its output
        assert f"| {part} |" in report
    assert "FAILED" not in report
    assert "seed-jax import sd --from out --out DIR" in (exported / "README.md").read_text()
    assert not (exported / "load_in_pytorch.py").exists()


def test_the_export_loads_strictly_and_silently_in_diffusers(exported, caplog):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)  # of the libraries about one another
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(exported)
        _, report = diffusers.UNet2DConditionModel.from_pretrained(exported, subfolder="unet", output_loading_info=True)
    assert not [record for record in caplog.records if "safety" in record.message or "not used" in record.message]
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    recorded = golden.tensors("sd14_tiny/outputs.safetensors")
    embeddings = torch.from_numpy(recorded["embeddings"])
    empty = torch.from_numpy(recorded["empty_prompt_states"]).expand_as(embeddings)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        prompt_embeds=embeddings, negative_prompt_embeds=empty, latents=torch.from_numpy(recorded["latents"]),
        num_inference_steps=5, guidance_scale=7.5, output_type="np",
    ).images  # fmt: skip
    np.testing.assert_allclose(drawn, recorded["pndm_5_image"], atol=1e-4)  # of the golden's README


def test_import_and_export_are_bitwise(exported):
    first, second = (import_stable_diffusion(folder) for folder in (golden.path(FOLDER), exported))
    assert first.config == second.config
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)


def test_a_workdir_is_exported_with_its_averages(model, tmp_path):
    stored = model_dir.load(model)
    small = {"text": stored.params["text"], "vae": stored.params["vae"], "unet": stored.params["unet"]}
    halved = jax.tree.map(lambda leaf: jnp.asarray(leaf) / 2, small["unet"])
    model_dir.save(tmp_path / "run/model", "stable_diffusion", {"sizes": stored.config["sizes"]}, None)
    store = Store(tmp_path / "run")
    params = {"params": jax.tree.map(jnp.asarray, small), "ema": {"unet": halved, "updates": jnp.ones(())}}
    store.save(1, params=params, optimizer={"count": jnp.zeros(())}, data={}, meta={"architecture": {}})
    store.close()
    command = ["export", "sd", "--model", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--text-tokenizer", str(golden.path(FOLDER) / "tokenizer")]) == 0
    unet = import_stable_diffusion(tmp_path / "out").params["unet"]
    jax.tree.map(np.testing.assert_array_equal, unet, jax.tree.map(np.asarray, halved))


def test_a_model_without_vocabulary_names_the_option(model, tmp_path, capsys):
    stored = model_dir.load(model)
    model_dir.save(tmp_path / "bare", "stable_diffusion", {"sizes": stored.config["sizes"]}, stored.params)
    assert cli.main(["export", "sd", "--model", str(tmp_path / "bare"), "--out", str(tmp_path / "out")]) == 2
    assert "--text-tokenizer" in capsys.readouterr().err

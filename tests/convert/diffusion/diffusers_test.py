import json
import shutil
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from seed_jax.convert.diffusion.diffusers_export import export_unclip, write_unclip
from seed_jax.convert.diffusion.diffusers_import import import_to_model_dir, import_unclip
from seed_jax.convert.diffusion.parity import parity_report
from seed_jax.errors import UserError
from tests.models.diffusion.cases import FOLDER, error, imported
from tests.support import golden


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the golden folder, to damage."""
    shutil.copytree(golden.path(FOLDER), tmp_path / "folder", copy_function=shutil.copyfile)
    return tmp_path / "folder"


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def retensor(path: Path, change) -> None:
    save_file(change(load_file(path)), path)


def test_settings_are_read_from_the_folder():
    config = imported().config
    assert config.sampler == "pndm"
    assert config.unet.num_heads == (2, 4, 4, 4)
    assert config.unet.cross_attention == (True, True, True, False)
    assert config.noise.steps_offset == 1
    assert not config.noise.set_alpha_to_one
    assert (config.prompt.bos, config.prompt.eos, config.prompt.pad) == (521, 522, 0)
    assert config.text.activation == "gelu"


@pytest.mark.slow
def test_round_trip_through_pytorch(tmp_path):
    """What we write, PyTorch diffusers draws with as the original did; what it then saves, we read back unchanged."""
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    model, inputs = imported(), golden.tensors("unclip_tiny/inputs.safetensors")
    out = tmp_path / "out"
    import_to_model_dir(golden.path(FOLDER), tmp_path / "model")
    export_unclip(tmp_path / "model", out)
    pipeline = diffusers.StableUnCLIPImg2ImgPipeline.from_pretrained(out)
    pipeline.set_progress_bar_config(disable=True)
    drawing = "diffusers.pipelines.stable_diffusion.pipeline_stable_unclip_img2img.randn_tensor"
    with mock.patch(drawing, return_value=torch.from_numpy(inputs["noise"])):
        image = pipeline(
            image_embeds=torch.from_numpy(inputs["image_embeds"]), latents=torch.from_numpy(inputs["latents"]),
            num_inference_steps=5, guidance_scale=10.0, output_type="np",
        ).images  # fmt: skip
    # The README's tolerance for images; the PyTorch versions differ.
    assert error(image, golden.tensors("unclip_tiny/pndm_5.safetensors")["image"]) < 1e-4
    pipeline.save_pretrained(tmp_path / "again")  # newer names, tokenizer.json
    again = import_unclip(tmp_path / "again")
    assert again.config == model.config
    assert again.vocabulary == model.vocabulary
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


@pytest.mark.slow
def test_a_decoder_without_an_image_encoder_is_not_exported(folder, tmp_path, caplog):
    """PyTorch's pipeline cannot draw without one, not even from an embedding."""
    caplog.set_level("INFO")
    shutil.rmtree(folder / "feature_extractor")
    import_to_model_dir(folder, tmp_path / "model")
    assert "has no image encoder" in caplog.text
    with pytest.raises(UserError, match=r"has no image encoder.*--image-encoder"):
        export_unclip(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_unclip(tmp_path / "model", tmp_path / "out", image_side=golden.path(FOLDER))
    assert (tmp_path / "out/image_encoder/config.json").is_file()


@pytest.mark.slow
def test_report_finds_nothing_in_a_good_folder():
    pytest.importorskip("torch")
    report = parity_report("Import", golden.path(FOLDER), imported().params, importing=True, facts={})
    assert report.passed
    assert {check.name for check in report.checks} == {"unet", "vae", "text_encoder"}
    assert max(check.value for check in report.checks) < 2e-5  # float32, of the largest value
    assert {"unet.conv_in.weight", "image_normalizer.mean"} < {difference.name for difference in report.differences}


@pytest.mark.slow
def test_report_allows_rounding_and_nothing_else(folder, tmp_path):
    pytest.importorskip("torch")
    out, decoder = tmp_path / "out", imported()
    write_unclip(
        decoder.config, decoder.params, decoder.vocabulary, out, dtype="float16", image_side=golden.path(FOLDER)
    )
    assert parity_report("Export", out, decoder.params, importing=False, facts={}).passed
    retensor(
        folder / "vae/diffusion_pytorch_model.safetensors",
        lambda state: {**state, "decoder.conv_in.bias": state["decoder.conv_in.bias"] + np.float32(0.01)},
    )
    report = parity_report("Import", folder, decoder.params, importing=True, facts={})
    assert not report.passed
    assert [difference.name for difference in report.differences if not difference.exact] == [
        "vae.decoder.conv_in.bias"
    ]
    assert [check.name for check in report.checks if not check.passed] == ["vae"]


@pytest.mark.slow
def test_older_names_bin_files_and_half_variants(folder):
    """The released autoencoder calls its attention otherwise, and ships as .bin and fp16 too."""
    torch = pytest.importorskip("torch")
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(state):
        for new, old in older.items():
            state = {key.replace(f"attentions.0.{new}", f"attentions.0.{old}"): value for key, value in state.items()}
        return state

    retensor(folder / "vae/diffusion_pytorch_model.safetensors", rename)
    text = folder / "text_encoder/model.safetensors"
    torch.save({k: torch.from_numpy(v) for k, v in load_file(text).items()}, text.with_name("pytorch_model.bin"))
    text.unlink()
    unet = folder / "unet/diffusion_pytorch_model.safetensors"
    halves = {key: value.astype(np.float16) for key, value in load_file(unet).items()}
    save_file(halves, unet.with_name("diffusion_pytorch_model.fp16.safetensors"))
    full = import_unclip(folder)
    jax.tree.map(np.testing.assert_array_equal, full.params, imported().params)
    unet.unlink()
    half = import_unclip(folder).params["unet"]  # the only variant there is
    assert jax.tree.leaves(half)[0].dtype == np.float16
    wide = import_unclip(folder, dtype="float32").params["unet"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), wide, imported().params["unet"])
    # As PyTorch diffusers does it, a part without the variant comes from its full file.
    jax.tree.map(np.testing.assert_array_equal, import_unclip(folder, variant="fp16").params["unet"], half)
    with pytest.raises(UserError, match="no weight files of the variant 'bf16'"):
        import_unclip(folder, variant="bf16")


@pytest.mark.parametrize(("file", "changes", "message"), [
    ("unet", {"act_fn": "gelu"}, "act_fn is 'gelu', only 'silu'"),
    ("unet", {"class_embed_type": None}, "class_embed_type is None"),
    ("unet", {"encoder_hid_dim": 7}, "encoder_hid_dim is 7, which is unknown"),
    ("unet", {"up_block_types": ["UpBlock2D"] * 4}, "up_block_types"),
    ("vae", {"use_quant_conv": False}, "use_quant_conv is False"),
    ("text_encoder", {"hidden_act": "relu"}, "'relu'"),
    ("image_normalizer", {"embedding_dim": 12}, "width 12"),
    ("scheduler", {"_class_name": "EulerDiscreteScheduler"}, "'EulerDiscreteScheduler' is not supported, only PNDM"),
    ("scheduler", {"prediction_type": "sample"}, "prediction_type is 'sample'"),
    ("scheduler", {"timestep_spacing": "random"}, "timestep_spacing is 'random'"),
    ("image_noising_scheduler", {"beta_schedule": "laplace"}, "beta_schedule is 'laplace'"),
    ("scheduler", {"skip_prk_steps": False}, "skip_prk_steps is False"),
    ("scheduler", {"thresholding": True}, "thresholding is True"),
    ("scheduler", {"_class_name": "DDIMScheduler", "clip_sample": True}, "clip_sample is True"),
])  # fmt: skip
def test_settings_that_would_change_the_picture_are_refused(folder, file, changes, message):
    edit(next((folder / file).glob("*config.json")), **changes)
    with pytest.raises(UserError, match=message):
        import_unclip(folder)


def test_the_small_decoder_is_refused_by_the_width_of_its_normalizer(folder):
    edit(folder / "image_normalizer/config.json", embedding_dim=768)
    shutil.rmtree(folder / "unet")
    (folder / "unet").mkdir()
    with pytest.raises(UserError, match=r"small decoder.*768.*1024"):
        import_unclip(folder)


@pytest.mark.slow
def test_ddim_folder(folder):
    shutil.copyfile(folder / "scheduler_ddim/scheduler_config.json", folder / "scheduler/scheduler_config.json")
    assert import_unclip(folder).config.sampler == "ddim"


def test_missing_parts_and_tensors_are_all_named(folder):
    retensor(
        folder / "unet/diffusion_pytorch_model.safetensors",
        lambda state: {
            **{key: value for key, value in state.items() if not key.startswith("conv_in.")},
            "time_embedding.linear_1.bias": np.zeros(3, np.float32),
            "stray": np.zeros(3, np.float32),
        },
    )
    with pytest.raises(UserError) as caught:
        import_unclip(folder)
    for part in ("conv_in.bias", "conv_in.weight", "stray", r"time_embedding.linear_1.bias has shape (3,)"):
        assert part in str(caught.value)
    shutil.rmtree(folder / "vae")
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(UserError, match="lacks vae, tokenizer"):
        import_unclip(folder)

"""The stage `decoder`: it learns, goes on where it was, averages its weights, and its loss is that of diffusers."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from flax.traverse_util import flatten_dict

from seed_jax import sharding
from seed_jax.checkpoint import model_dir
from seed_jax.convert.diffusion.stable_diffusion import import_stable_diffusion
from seed_jax.errors import UserError
from seed_jax.inference.drawing.drawer import Drawer
from seed_jax.models.diffusion import StableDiffusion, StableDiffusionConfig, Unclip, UnclipCondition
from seed_jax.models.tokenizer.config import SeedTokenizerConfig
from seed_jax.models.tokenizer.vit import BlockConfig, Vit, VitConfig
from seed_jax.train import loop
from seed_jax.train.flops import decoder_flops
from seed_jax.train.optimizer import init_ema, make_optimizer, update_ema
from seed_jax.train.stages.decoder.stage import DecoderStage, prediction_error
from tests.models.diffusion import cases
from tests.models.diffusion.cases import SMALLEST
from tests.support import golden, meshes
from tests.support.configs import config_for

STEPS = 24
KEY = jax.random.key(0)


@pytest.fixture(scope="module", autouse=True)
def two_devices():
    with meshes.on_devices(2):
        yield


def settings(init, **changes):
    options = {
        "steps": STEPS,
        "log_every": 1,
        "checkpoint.every_steps": STEPS // 2,
        "samples": 0,
        "model.init": str(init),
        "model.train": ("unet",),
        "optimizer.peak_lr": 1e-2,
    }
    options |= {key.replace("__", "."): value for key, value in changes.items()}
    return config_for("decoder:tiny", **options)


def values(workdir, key):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row[key] for row in rows if key in row]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    directory = tmp_path_factory.mktemp("decoder") / "start"
    params = jax.jit(lambda key: sharding.unbox(Unclip(SMALLEST).init(key)))(jax.random.key(0))
    return model_dir.save(directory, "unclip", {"sizes": SMALLEST.to_dict()}, params)


@pytest.fixture(scope="module")
def run(start, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("decoder") / "run"
    loop.train(settings(start), workdir)
    return workdir


@pytest.mark.slow
def test_the_unet_learns_and_all_else_stays(start, run):
    losses = values(run, "loss_velocity")
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
    before, after = model_dir.load(start).params, model_dir.load(run).params
    for part in ("vae", "text", "normalizer"):
        jax.tree.map(np.testing.assert_array_equal, after["params"][part], before[part])
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), after["params"]["unet"], before["unet"])
    still = ["/".join(path) for path, leaf in flatten_dict(moved).items() if not leaf]
    assert not still


@pytest.mark.slow
def test_the_run_goes_on_number_by_number(start, run, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / str(STEPS))
    loop.train(settings(start), again)
    assert values(again, "loss") == values(run, "loss")
    ended, resumed = (model_dir.load(folder).params["ema"] for folder in (run, again))
    jax.tree.map(np.testing.assert_array_equal, resumed, ended)


def test_averages_have_no_moments():
    variables = {name: {"w": jnp.ones(3)} for name in ("params", "ema")}
    state = make_optimizer(config_for("decoder:tiny"), ("ema",)).init(variables)
    assert sum(leaf.shape == (3,) for leaf in jax.tree.leaves(state)) == 2  # both moments of the parameters alone


@pytest.mark.slow
def test_a_workdir_draws_with_the_averages(run):
    stored = model_dir.load(run).params
    drawer = Drawer.load(run)
    for path, leaf in flatten_dict(drawer.params["unet"]).items():
        np.testing.assert_array_equal(leaf, flatten_dict(stored["ema"]["unet"])[path])
        assert leaf.shape == flatten_dict(stored["params"]["unet"])[path].shape
    assert float(stored["ema"]["updates"]) == STEPS


@pytest.mark.slow
def test_the_autoencoder_learns_from_nothing(start, tmp_path):
    loop.train(settings(start, model__train=("vae",)), tmp_path / "run")
    losses = values(tmp_path / "run", "loss_pixels")
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    assert set(model_dir.load(tmp_path / "run").params["ema"]) == {"vae", "updates"}


@pytest.mark.slow
def test_a_decoder_of_latents_learns_what_a_vision_tower_sees_and_the_encoder_stays(start, tmp_path):
    sizes = VitConfig(32, 8, BlockConfig(16, 1, 2, 32), projection=8)
    params = sharding.unbox(jax.jit(lambda key: Vit(sizes).init(key, jnp.zeros((1, 32, 32, 3)), method="embed"))(KEY))
    vision = model_dir.save(tmp_path / "vision", "clip_vision", {"sizes": dataclasses.asdict(sizes)}, params["params"])
    workdir = tmp_path / "run"
    changes = {"source.tokenizer": "", "source.vision": str(vision), "model.latent_noise": 0.1}
    small = dataclasses.replace(SMALLEST, unet=dataclasses.replace(SMALLEST.unet, class_width=16))
    params = jax.jit(lambda key: sharding.unbox(Unclip(small).init(key)))(KEY)
    begin = model_dir.save(tmp_path / "start", "unclip", {"sizes": small.to_dict()}, params)
    loop.train(settings(begin, model__train=("vae_decoder",), model__perceptual_weight=10.0, **changes), workdir)
    losses = values(workdir, "loss_features")
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    assert not values(workdir, "loss_divergence")
    after = model_dir.load(workdir).params["params"]
    for part in ("unet", "text"):
        jax.tree.map(np.testing.assert_array_equal, after[part], params[part])
    moved = {
        path[0]
        for path, leaf in flatten_dict(after["vae"]).items()
        if (np.asarray(leaf) != flatten_dict(params["vae"])[path]).any()
    }
    assert moved == {"decoder", "post_quant_conv"}


def test_averages_follow_with_their_decay():
    params = [{"w": jnp.float32(value)} for value in (1.0, 3.0, 5.0)]
    averages = init_ema(params[0])
    averages = update_ema(averages, params[1], 0.999)
    assert float(averages["w"]) == pytest.approx(1 + (1 - 2 / 11) * 2)  # the first decay is (1 + 1) / (10 + 1)
    assert float(update_ema(averages, params[2], 0.1)["w"]) == pytest.approx(float(averages["w"]) * 0.1 + 4.5)


def test_the_loss_is_that_of_diffusers():
    unclip, params = cases.decoder()
    rng = np.random.default_rng(0)
    sizes = unclip.config.unet
    side, batch = sizes.sample_size, 3
    latents, noise = (rng.standard_normal((batch, side, side, 4), np.float32) for _ in range(2))
    timesteps = np.array([3, 400, 990])
    states = rng.standard_normal((batch, 7, sizes.text_width), np.float32)
    labels = rng.standard_normal((batch, sizes.class_width), np.float32)
    compute = jax.jit(functools.partial(prediction_error, unclip))
    ours = compute(params, latents, noise, timesteps, UnclipCondition(jnp.asarray(states), jnp.asarray(labels)))
    folder = golden.path(cases.FOLDER)
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    clean, noise = (torch.from_numpy(np.moveaxis(each, -1, 1).copy()) for each in (latents, noise))
    at = torch.from_numpy(timesteps)
    with torch.no_grad():
        noisy = scheduler.add_noise(clean, noise, at)
        found = unet(noisy, at, torch.from_numpy(states), class_labels=torch.from_numpy(labels)).sample
    theirs = (found - scheduler.get_velocity(clean, noise, at)).square().mean((1, 2, 3))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)  # float32 through some thirty layers


@pytest.mark.slow
def test_the_loss_of_stable_diffusion_is_that_of_diffusers():
    folder = golden.path("sd14_tiny/diffusion_model")
    imported = import_stable_diffusion(folder)
    rng = np.random.default_rng(0)
    latents, noise = (rng.standard_normal((2, 8, 8, 4), np.float32) for _ in range(2))
    timesteps, states = np.array([3, 700]), rng.standard_normal((2, 77, 768), np.float32)
    compute = jax.jit(functools.partial(prediction_error, StableDiffusion(imported.config)))
    ours = compute(imported.params, latents, noise, timesteps, states)
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    clean, noise = (torch.from_numpy(np.moveaxis(each, -1, 1).copy()) for each in (latents, noise))
    at = torch.from_numpy(timesteps)
    with torch.no_grad():
        found = unet(scheduler.add_noise(clean, noise, at), at, torch.from_numpy(states)).sample
    theirs = (found - noise).square().mean((1, 2, 3))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)  # float32 through some thirty layers


@pytest.mark.slow
def test_stable_diffusion_learns_what_seed1_s_codes_say(tmp_path):
    sizes = StableDiffusionConfig(
        unet=dataclasses.replace(SMALLEST.unet, text_width=32, class_width=None, linear_projection=False),
        vae=SMALLEST.vae,
        text=dataclasses.replace(SMALLEST.text, hidden_size=32, max_length=77),
        prompt=SMALLEST.prompt,
    )
    params = jax.jit(lambda key: sharding.unbox(StableDiffusion(sizes).init(key)))(jax.random.key(0))
    start = model_dir.save(tmp_path / "start", "stable_diffusion", {"sizes": sizes.to_dict()}, params)
    options = {"model.decoder": "stable_diffusion", "data.batch_size": 8}
    loop.train(settings(start, **options), tmp_path / "run")
    losses = values(tmp_path / "run", "loss_noise")
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:3])
    assert Drawer.load(tmp_path / "run").config == sizes


def test_decoders_and_tokenizers_that_do_not_belong_together(tmp_path):
    sizes = SeedTokenizerConfig.tiny()
    model_dir.save(tmp_path / "seed2", "seed_tokenizer", {"sizes": sizes.to_dict()}, {"codebook": np.zeros(1)})
    with pytest.raises(UserError, match=r"\(77, 768\).*gives \(32,\).*unCLIP belongs to SEED-2"):
        DecoderStage(config_for("decoder:seed1_tiny", **{"source.tokenizer": str(tmp_path / "seed2")}))


def test_flops_are_those_of_the_kernels():
    params = sharding.unbox(jax.eval_shape(Unclip(SMALLEST).init, jax.random.key(0)))
    unet = params["unet"]
    places = {"conv_in": 64, "conv_out": 64}
    least = 6 * sum(unet[name]["kernel"].size * count for name, count in places.items())
    assert least < decoder_flops(params, SMALLEST, ("unet",)) < 6 * 64 * sum(x.size for x in jax.tree.leaves(unet))
    both = decoder_flops(params, SMALLEST, ("unet", "vae"))
    assert both > decoder_flops(params, SMALLEST, ("unet", "vae_decoder")) > decoder_flops(params, SMALLEST, ("unet",))


@pytest.mark.parametrize(
    ("changes", "key_words"),
    [
        ({"model.train": ("text",)}, "unet, vae"),
        ({"model.train": ("vae", "vae_decoder")}, "vae includes vae_decoder"),
        ({"model.perceptual_weight": 1.0, "model.train": ("unet",)}, "the autoencoder does not train"),
        ({"model.perceptual_weight": 1.0, "model.train": ("vae",)}, "name source.vision"),
        ({"model.condition_dropout": 1.0}, "condition_dropout is 1.0"),
        ({"model.config": "huge"}, "model.config is 'huge'.*full, small, tiny"),
        ({"source.tokenizer": ""}, "name exactly one"),
        ({"model.decoder": "dalle"}, "model.decoder is 'dalle'.*unclip, stable_diffusion"),
        ({"model.decoder": "stable_diffusion", "model.noise_level": 3}, "only unCLIP's embeddings are noised"),
        ({"model.decoder": "stable_diffusion", "source.tokenizer": "", "source.vision": "x"}, "conditioned on text"),
        ({"source.tokenizer": "/nowhere"}, "source.tokenizer /nowhere does not exist"),
        ({"data.demo": False}, "data.mixture is empty"),
    ],
)
def test_bad_settings_are_one_sentence(tmp_path, changes, key_words):
    with pytest.raises(UserError, match=key_words):
        loop.train(config_for("decoder:tiny", **changes), tmp_path)


def test_unknown_variant():
    with pytest.raises(UserError, match="no variant 'huge'"):
        config_for("decoder:huge")

"""The decoder against every recorded intermediate and trajectory of the original (goldens/unclip_tiny)."""

import functools
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from seed_jax.errors import UserError
from seed_jax.models.diffusion import Unclip, UnclipCondition, UnclipConfig, flax_blocks, sampler_steps
from seed_jax.models.diffusion.unet import UNet, UNetConfig
from seed_jax.precision import Precision
from tests.models.diffusion.cases import SMALLEST, decoder, error, random_decoder, tensors


@pytest.mark.slow
def test_unet_blocks_equal_the_originals():
    """Compare the output of every block, as diffusers' modules compute it within the UNet."""
    unclip, params = decoder()
    pieces, unet = tensors("pieces"), unclip.unet

    @jax.jit
    def run(params):
        outputs = {}

        def record(call, args, kwargs, context):
            y = call(*args, **kwargs)
            if context.method_name == "__call__" and len(context.module.path) == 1:
                outputs[context.module.path[0]] = y
            return y

        with nn.intercept_methods(record):
            y = unet.apply(
                params,
                pieces["unet.in_sample"],
                jnp.repeat(pieces["unet.in_timestep"], 2),
                pieces["unet.in_encoder_hidden_states"],
                pieces["unet.in_class_labels"],
            )
        return y, outputs

    y, outputs = run(params["unet"])
    names = {"time_proj": "time_proj", "time_embedding": "time_embedding", "class_embedding": "add_embedding"}
    names |= {"conv_in": "conv_in", "mid": "mid_block"}
    names |= {f"{way}_{i}": f"{way}_blocks_{i}" for way in ("down", "up") for i in range(4)}
    for piece, name in names.items():
        output = outputs[name][0] if piece.startswith("down") else outputs[name]  # a down block also returns its skips
        # The original's tolerance for one forward pass; values reach 16.
        assert error(output, pieces[f"unet.{piece}"]) < 1e-4, piece
    assert error(y, pieces["unet.out"]) < 1e-5


@pytest.mark.slow
def test_denoise_equals_the_recorded_forward():
    unclip, params = decoder()
    pieces = tensors("pieces")
    condition = UnclipCondition(pieces["unet.in_encoder_hidden_states"], pieces["unet.in_class_labels"])
    y = jax.jit(unclip.denoise)(params, pieces["unet.in_sample"], jnp.repeat(pieces["unet.in_timestep"], 2), condition)
    assert error(y, pieces["unet.out"]) < 1e-5


@pytest.mark.parametrize("steps", [5, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("sampler", ["pndm", pytest.param("ddim", marks=pytest.mark.slow)])
def test_trajectories_equal_the_originals(sampler, steps):
    """Compare the latents of the whole loop with and without negative condition, and one with a prompt."""
    unclip, params = decoder()
    pieces, inputs = tensors("pieces"), tensors("inputs")
    text_states = jax.jit(unclip.encode_text)
    empty = text_states(params, pieces["input_ids_empty"])
    level = jnp.array([0])
    labels = unclip.class_labels(params, inputs["image_embeds"], inputs["noise"], level)
    negative = unclip.class_labels(params, inputs["negative_image_embeds"], inputs["noise_negative"], level)

    @jax.jit
    def run(params, latents, condition, negative, table):
        return unclip.sample_latents(
            params, latents, condition, table, negative=negative, guidance_scale=10.0, return_intermediates=True
        )

    negatives = {"": UnclipCondition(empty, jnp.zeros_like(labels)), "_negative": UnclipCondition(empty, negative)}
    table = sampler_steps(sampler, unclip.config.noise, steps)
    for suffix, negative in negatives.items():
        recorded = tensors(f"{sampler}_{steps}{suffix}")
        trajectory = run(params, inputs["latents"], UnclipCondition(empty, labels), negative, table)
        np.testing.assert_array_equal(table.timesteps, recorded["timesteps"])
        # Ours and the original's float32 errors are about 2e-5 after 5 steps, where guidance 10 amplifies more.
        assert error(trajectory.final, recorded["latents_final"]) < 1e-4
        if "latents_after_each_step" in recorded:
            assert error(trajectory.intermediates[:, 0], recorded["latents_after_each_step"]) < 1e-4
            assert error(empty, recorded["prompt_embeds"][:1]) < 1e-5
            assert error(negative.class_labels, recorded["class_labels"][:1]) < 1e-5
            assert error(labels, recorded["class_labels"][1:]) < 1e-5
    if (sampler, steps) == ("pndm", 5):
        prompted = UnclipCondition(text_states(params, pieces["input_ids_text"]), labels)
        trajectory = run(params, inputs["latents"], prompted, negatives[""], table)
        assert error(trajectory.final, tensors("pndm_5_prompt")["latents_final"]) < 1e-4


def test_pixels_equal_the_originals():
    unclip, params = decoder()
    decode = jax.jit(unclip.decode_latents)
    for name in ("pndm_5", "pndm_20_negative", "ddim_20", "pndm_5_prompt"):
        recorded = tensors(name)
        assert error(decode(params, recorded["latents_final"]), recorded["image"]) < 1e-4


@pytest.mark.slow
def test_bfloat16_is_near_float32():
    config = UnclipConfig.tiny()
    _, params = random_decoder(config)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 4))
    condition = UnclipCondition(jnp.ones((2, 77, 32)), jnp.ones((2, 48)))
    exact, rounded = (
        jax.jit(Unclip(config, Precision(compute=name)).denoise)(params, x, jnp.array([5, 900]), condition)
        for name in ("float32", "bfloat16")
    )
    assert rounded.dtype == jnp.float32
    assert 1e-5 < error(rounded, exact) < 0.05 * float(jnp.abs(exact).max())  # 8 bits through some thirty layers


@pytest.mark.slow
def test_unet_trains():
    """Every UNet parameter gets a gradient, the same with remat, and a step along it lowers the loss."""
    _, params = random_decoder(SMALLEST)
    x, target = (jax.random.normal(jax.random.key(i), (2, 8, 8, 4)) for i in (1, 2))
    condition = UnclipCondition(jax.random.normal(jax.random.key(3), (2, 8, 16)), jnp.ones((2, 64)))

    def loss(unet, remat):
        unclip = Unclip(SMALLEST, remat=remat)
        y = unclip.denoise({**params, "unet": unet}, x, jnp.array([5, 900]), condition)
        return jnp.square(y - target).mean()

    step = jax.jit(jax.value_and_grad(functools.partial(loss, remat=False)))
    before, gradient = step(params["unet"])
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient))
    after, _ = step(jax.tree.map(lambda p, g: p - 0.05 * g, params["unet"], gradient))
    assert after < before
    _, recomputed = jax.jit(jax.value_and_grad(functools.partial(loss, remat=True)))(params["unet"])
    for ours, expected in zip(jax.tree.leaves(recomputed), jax.tree.leaves(gradient), strict=True):
        assert error(ours, expected) < 1e-5 * max(1.0, float(jnp.abs(expected).max()))


def test_init_scales_kernels_and_names_axes():
    boxed = Unclip(UnclipConfig.tiny()).unet.init(jax.random.key(3))
    kernel = meta.unbox(boxed)["mid_block"]["resnets_0"]["conv1"]["kernel"]
    assert float(kernel.std()) == pytest.approx((9 * 32) ** -0.5, rel=0.05)
    assert boxed["mid_block"]["resnets_0"]["conv1"]["kernel"].names == (None, None, None, "embed")
    assert boxed["conv_out"]["kernel"].names == (None, None, "embed", None)
    norm = meta.unbox(boxed)["conv_norm_out"]
    assert float(norm["scale"].min()) == 1
    assert float(jnp.abs(norm["bias"]).max()) == 0


def test_released_sizes():
    config = UnclipConfig.full()
    shapes = meta.unbox(jax.eval_shape(Unclip(config).init, jax.random.key(0)))
    counts = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in shapes.items()}
    assert counts == {"unet": 870_173_124, "vae": 83_653_863, "text": 340_387_840, "normalizer": 2048}
    assert (len(jax.tree.leaves(shapes["unet"])), len(jax.tree.leaves(shapes["vae"]))) == (690, 248)
    assert (config.image_size, config.embedding_width) == (768, 1024)


def test_unet_without_class_labels_has_no_class_embedding():
    """The UNet of Stable Diffusion 1: fixed head count, convolutional projections, text as the only condition."""
    unet = UNet(
        UNetConfig(
            sample_size=4, block_channels=(8, 8), cross_attention=(True, False), num_heads=(2, 2), layers_per_block=1,
            text_width=8, class_width=None, norm_groups=4, linear_projection=False,
        )
    )  # fmt: skip
    params = meta.unbox(unet.init(jax.random.key(0)))
    assert not {"class_embedding", "add_embedding"} & params.keys()
    assert params["mid_block"]["attentions_0"]["proj_in"]["kernel"].shape == (1, 1, 8, 8)
    x, text = jax.random.normal(jax.random.key(1), (2, 4, 4, 4)), jax.random.normal(jax.random.key(2), (2, 3, 8))
    apply = jax.jit(unet.apply)
    y = apply(params, x, jnp.array([5, 900]), text)
    assert y.shape == x.shape
    assert np.abs(y - apply(params, x, jnp.array([5, 900]), text[::-1])).max() > 1e-5


def test_missing_diffusers_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers.models.vae_flax", None)
    flax_blocks.module.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'seed-jax\[decoder\]'"):
        flax_blocks.module("vae")


def test_config_survives_json():
    config = UnclipConfig.tiny()
    assert UnclipConfig.from_dict(config.to_dict()) == config

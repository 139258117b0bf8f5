"""Stable Diffusion 1.4 against the trajectories recorded from diffusers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seed_jax.convert.diffusion.stable_diffusion import abstract_params, import_stable_diffusion
from seed_jax.errors import UserError
from seed_jax.models.diffusion import StableDiffusion, StableDiffusionConfig, sampler_steps
from seed_jax.models.diffusion.samplers import sample
from seed_jax.models.diffusion.unet import UNetConfig
from tests.models.diffusion.cases import channels_last, error
from tests.support import golden


@functools.cache
def decoder() -> tuple[StableDiffusion, dict]:
    imported = import_stable_diffusion(golden.path("sd14_tiny/diffusion_model"))
    return StableDiffusion(imported.config), jax.tree.map(jnp.asarray, imported.params)


@functools.cache
def recorded() -> dict[str, np.ndarray]:
    return golden.tensors("sd14_tiny/outputs.safetensors")


@pytest.mark.slow
def test_empty_prompt_states_equal_the_original():
    model, params = decoder()
    states = jax.jit(model.encode_text)(params, jnp.asarray(recorded()["empty_prompt_ids"]))
    assert error(states, recorded()["empty_prompt_states"]) < 1e-5


@pytest.mark.parametrize("steps", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_trajectories_and_pixels_equal_the_original(steps):
    model, params = decoder()
    expected = recorded()
    latents = jnp.asarray(channels_last(expected["latents"]))
    states = jnp.asarray(expected["embeddings"])
    empty = jnp.broadcast_to(jnp.asarray(expected["empty_prompt_states"]), states.shape)
    table = sampler_steps("pndm", model.config.noise, steps)
    np.testing.assert_array_equal(table.timesteps, expected[f"pndm_{steps}_timesteps"])

    @jax.jit
    def run(params, latents, states, empty):
        trajectory = model.sample_latents(
            params, latents, states, table, negative=empty, guidance_scale=7.5, return_intermediates=steps == 5
        )
        return trajectory, model.decode_latents(params, trajectory.final)

    trajectory, pixels = run(params, latents, states, empty)
    assert error(trajectory.final, channels_last(expected[f"pndm_{steps}_latents_final"])) < 3e-4
    if steps == 5:
        after = channels_last(expected["pndm_5_latents_after_each_step"])
        assert error(trajectory.intermediates[1:], after) < 3e-4  # recorded from the second evaluation on
    assert error(pixels, expected[f"pndm_{steps}_image"]) < 1e-4


@pytest.mark.parametrize("steps", [5, 50])
def test_sampler_equals_the_one_of_compvis(steps):
    """The original's PLMS on a fake model: the noise is 0.3 x + 0.1 sin(t)."""
    model, _ = decoder()
    expected = recorded()
    table = sampler_steps("pndm", model.config.noise, steps)
    x = jnp.asarray(channels_last(expected["latents"])[:1, :4, :4])
    fake = jax.jit(lambda x: sample(lambda x, t: 0.3 * x + 0.1 * jnp.sin(t.astype(jnp.float32)), x, table).final)(x)
    assert error(fake, channels_last(expected[f"compvis_plms_{steps}"])) < 1e-4


def test_full_sizes():
    sizes = {
        part: sum(leaf.size for leaf in jax.tree.leaves(tree))
        for part, tree in abstract_params(StableDiffusionConfig.full()).items()
    }
    # The published parameter counts of stable-diffusion-v1-4.
    assert sizes == {"unet": 859_520_964, "vae": 83_653_863, "text": 123_060_480}
    config = StableDiffusionConfig.full()
    assert (config.image_size, config.embedding_shape) == (512, (77, 768))
    assert StableDiffusionConfig.from_dict(config.to_dict()) == config
    with pytest.raises(UserError, match="class labels"):
        StableDiffusionConfig(unet=UNetConfig(text_width=768))

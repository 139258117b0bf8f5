"""The samplers against PyTorch diffusers' schedulers, and against an exact solution."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seed_jax.errors import UserError
from seed_jax.models.diffusion.noise_schedule import NoiseScheduleConfig, alphas_cumprod
from seed_jax.models.diffusion.samplers import guided, sample, sampler_steps
from tests.models.diffusion.cases import error, tensors

CLASSES = {"pndm": "PNDMScheduler", "ddim": "DDIMScheduler", "dpmpp": "DPMSolverMultistepScheduler"}
START = np.random.default_rng(0).standard_normal((1, 4, 4, 4)).astype(np.float32)


@jax.jit
def run_toy_model(x, steps):
    return sample(lambda x, t: 0.3 * x + 0.1 * jnp.sin(t * 1.0), x, steps, return_intermediates=True).intermediates


@pytest.mark.parametrize("steps", [5, 20, 50])
@pytest.mark.parametrize("sampler", ["pndm", "ddim"])
def test_timesteps_equal_the_originals(sampler, steps):
    expected = tensors("pieces")[f"{sampler}_{steps}.timesteps"]
    np.testing.assert_array_equal(sampler_steps(sampler, NoiseScheduleConfig(), steps).timesteps, expected)


def test_pndm_evaluates_the_second_timestep_twice():
    steps = sampler_steps("pndm", NoiseScheduleConfig(), 20)
    assert steps.timesteps.tolist() == [951, 901, *range(901, 0, -50)]
    assert len(steps) == 21


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("sampler", CLASSES)
def test_every_intermediate_equals_pytorchs(sampler, spacing, prediction):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    config = NoiseScheduleConfig(timestep_spacing=spacing, prediction_type=prediction)
    options = {**dataclasses.asdict(config), "skip_prk_steps": True, "clip_sample": False}
    for count in (1, 2, 5, 13, 20):
        scheduler = getattr(diffusers, CLASSES[sampler]).from_config(options)
        scheduler.set_timesteps(count)
        steps = sampler_steps(sampler, config, count)
        np.testing.assert_array_equal(steps.timesteps, scheduler.timesteps)
        x, expected = torch.from_numpy(START), []
        for t in scheduler.timesteps:
            x = scheduler.step(0.3 * x + 0.1 * torch.sin(t.float()), t, x).prev_sample
            expected.append(x.numpy())
        intermediates = run_toy_model(jnp.asarray(START), steps)
        # PyTorch's coefficients are differences of float32 alphas, with errors of about 1e-5; ours are in float64.
        assert error(intermediates, expected) < 1e-5 * max(1.0, np.abs(expected).max())


def test_dpmpp_needs_fewer_steps_than_ddim():
    """For Gaussian data the exact solution is known, here compared at each sampler's last timestep."""
    config = NoiseScheduleConfig()
    mean, spread = 0.7, 0.5
    alphas = jnp.asarray(alphas_cumprod(config))

    def velocity(x, t):
        a = alphas[t]
        gain = jnp.sqrt(a) * spread**2 / (a * spread**2 + 1 - a)
        clean = mean + gain * (x - jnp.sqrt(a) * mean)
        return jnp.sqrt(a) * (x - jnp.sqrt(a) * clean) / jnp.sqrt(1 - a) - jnp.sqrt(1 - a) * clean

    def error_of(sampler):
        steps = sampler_steps(sampler, config, 12)
        first, last = (alphas[steps.timesteps[k]] for k in (0, -1))
        units = (START - np.sqrt(first) * mean) / np.sqrt(first * spread**2 + 1 - first)
        exact = np.sqrt(last) * mean + np.sqrt(last * spread**2 + 1 - last) * units
        trajectory = sample(velocity, jnp.asarray(START), steps, return_intermediates=True)
        return error(trajectory.intermediates[-2], exact)

    assert error_of("dpmpp") < 0.01  # the data's spread is 0.5
    assert error_of("ddim") > 0.1


def test_invalid_options_are_refused():
    with pytest.raises(UserError, match="'euler'"):
        sampler_steps("euler", NoiseScheduleConfig(), 20)
    for sampler in CLASSES:
        with pytest.raises(UserError, match="0 sampling steps"):
            sampler_steps(sampler, NoiseScheduleConfig(), 0)
    with pytest.raises(UserError, match="1001 sampling steps"):
        sampler_steps("pndm", NoiseScheduleConfig(), 1001)
    with pytest.raises(UserError, match="'sample'"):
        sampler_steps("ddim", NoiseScheduleConfig(prediction_type="sample"), 20)


def test_guidance_combines_the_predictions_of_each_image():
    """Every image of the batch has its own condition, a pytree: a mix-up of images or of halves would show."""
    x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 2, 2, 1)), jnp.float32)
    condition = {"scale": jnp.arange(3.0), "shift": jnp.arange(3.0) * 100}
    negative = {"scale": jnp.arange(3.0) + 10, "shift": -jnp.arange(3.0)}

    def denoise(x, t, condition):
        scale, shift, t = (value[:, None, None, None] for value in (condition["scale"], condition["shift"], t))
        return x * scale + shift + t

    timesteps = jnp.full(3, 7)
    positive, unconditional = denoise(x, timesteps, condition), denoise(x, timesteps, negative)
    prediction = guided(denoise, condition, negative, 3.0)(x, jnp.int32(7))
    # Float32 rounding of values up to 700.
    np.testing.assert_allclose(prediction, unconditional + 3 * (positive - unconditional), atol=1e-3)
    np.testing.assert_allclose(guided(denoise, condition, None, 3.0)(x, jnp.int32(7)), positive, atol=1e-4)

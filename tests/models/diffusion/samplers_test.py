"""The samplers against PyTorch diffusers' schedulers, and against an exact solution."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seed_jax.errors import UserError
from seed_jax.models.diffusion import plan
from seed_jax.models.diffusion.samplers import sample
from seed_jax.models.diffusion.schedules import alphas_cumprod
from seed_jax.models.diffusion.unclip_config import NoiseConfig
from tests.models.diffusion.cases import error, tensors

CLASSES = {"pndm": "PNDMScheduler", "ddim": "DDIMScheduler", "dpmpp": "DPMSolverMultistepScheduler"}
START = np.random.default_rng(0).standard_normal((1, 4, 4, 4)).astype(np.float32)
walk = jax.jit(lambda x, steps: sample(lambda x, t: 0.3 * x + 0.1 * jnp.sin(t * 1.0), x, steps, keep_each=True))


def test_alphas_equal_the_originals():
    pieces = tensors("pieces")
    # The original accumulates 1000 factors in float32, here it is float64.
    assert error(alphas_cumprod(NoiseConfig()), pieces["pndm.alphas_cumprod"]) < 1e-6
    cosine = NoiseConfig(beta_schedule="squaredcos_cap_v2")
    assert error(alphas_cumprod(cosine), pieces["noising.alphas_cumprod"]) < 1e-6


@pytest.mark.parametrize("steps", [5, 20, 50])
@pytest.mark.parametrize("sampler", ["pndm", "ddim"])
def test_timesteps_equal_the_originals(sampler, steps):
    expected = tensors("pieces")[f"{sampler}_{steps}.timesteps"]
    np.testing.assert_array_equal(plan(sampler, NoiseConfig(), steps).timesteps, expected)


def test_pndm_visits_the_second_timestep_twice():
    steps = plan("pndm", NoiseConfig(), 20)
    assert steps.timesteps.tolist() == [951, 901, *range(901, 0, -50)]
    assert len(steps) == 21


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("sampler", CLASSES)
def test_every_sample_equals_pytorchs(sampler, spacing, prediction):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    config = NoiseConfig(timestep_spacing=spacing, prediction_type=prediction)
    settings = {**dataclasses.asdict(config), "skip_prk_steps": True, "clip_sample": False}
    for count in (1, 2, 5, 13, 20):
        scheduler = getattr(diffusers, CLASSES[sampler]).from_config(settings)
        scheduler.set_timesteps(count)
        steps = plan(sampler, config, count)
        np.testing.assert_array_equal(steps.timesteps, scheduler.timesteps)
        x, expected = torch.from_numpy(START), []
        for t in scheduler.timesteps:
            x = scheduler.step(0.3 * x + 0.1 * torch.sin(t.float()), t, x).prev_sample
            expected.append(x.numpy())
        each = walk(jnp.asarray(START), steps).each
        # PyTorch's coefficients are differences of float32 alphas, off by some 1e-5; ours are made in float64.
        assert error(each, expected) < 1e-5 * max(1.0, np.abs(expected).max())


def test_solver_needs_fewer_steps_than_ddim():
    """For Gaussian data the path from noise to data is known exactly, here up to each sampler's last timestep."""
    config = NoiseConfig()
    mean, spread = 0.7, 0.5
    alphas = jnp.asarray(alphas_cumprod(config))

    def velocity(x, t):
        a = alphas[t]
        gain = jnp.sqrt(a) * spread**2 / (a * spread**2 + 1 - a)
        clean = mean + gain * (x - jnp.sqrt(a) * mean)
        return jnp.sqrt(a) * (x - jnp.sqrt(a) * clean) / jnp.sqrt(1 - a) - jnp.sqrt(1 - a) * clean

    def error_of(sampler):
        steps = plan(sampler, config, 12)
        first, last = (alphas[steps.timesteps[k]] for k in (0, -1))
        units = (START - np.sqrt(first) * mean) / np.sqrt(first * spread**2 + 1 - first)
        exact = np.sqrt(last) * mean + np.sqrt(last * spread**2 + 1 - last) * units
        return error(sample(velocity, jnp.asarray(START), steps, keep_each=True).each[-2], exact)

    assert error_of("dpmpp") < 0.01  # the data's spread is 0.5
    assert error_of("ddim") > 0.1


def test_bad_plans_are_refused():
    with pytest.raises(UserError, match="'euler'"):
        plan("euler", NoiseConfig(), 20)
    for sampler in CLASSES:
        with pytest.raises(UserError, match="0 sampling steps"):
            plan(sampler, NoiseConfig(), 0)
    with pytest.raises(UserError, match="1001 sampling steps"):
        plan("pndm", NoiseConfig(), 1001)
    with pytest.raises(UserError, match="'sample'"):
        plan("ddim", NoiseConfig(prediction_type="sample"), 20)

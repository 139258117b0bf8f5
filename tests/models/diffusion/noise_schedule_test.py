"""Noise schedules, noisy latents and prediction targets against diffusers' PyTorch schedulers."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from seed_jax.errors import UserError
from seed_jax.models.diffusion.noise_schedule import (
    NoiseScheduleConfig,
    add_noise,
    alphas_cumprod,
    prediction_target,
)
from tests.models.diffusion.cases import error, tensors

RNG = np.random.default_rng(0)
CLEAN, NOISE = (jnp.asarray(RNG.standard_normal((6, 4, 4, 3), np.float32)) for _ in range(2))
TIMESTEPS = np.array([0, 1, 250, 500, 998, 999])


def reference_scheduler():
    return DDPMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        prediction_type="v_prediction",
    )  # fmt: skip


def test_alphas_equal_the_originals():
    pieces = tensors("pieces")
    # The original accumulates 1000 factors in float32, here it is float64.
    assert error(alphas_cumprod(NoiseScheduleConfig()), pieces["pndm.alphas_cumprod"]) < 1e-6
    cosine = NoiseScheduleConfig(beta_schedule="squaredcos_cap_v2")
    assert error(alphas_cumprod(cosine), pieces["noising.alphas_cumprod"]) < 1e-6


def test_noisy_latents_and_velocity_equal_diffusers():
    config, scheduler = NoiseScheduleConfig(), reference_scheduler()
    arguments = [torch.from_numpy(np.array(array)) for array in (CLEAN, NOISE, TIMESTEPS)]
    noisy = add_noise(CLEAN, NOISE, jnp.asarray(TIMESTEPS), config)
    velocity = prediction_target(CLEAN, NOISE, jnp.asarray(TIMESTEPS), config)
    # Float32 products of 1000 factors, rounded in another order: 2e-6 of values up to 4.
    np.testing.assert_allclose(noisy, scheduler.add_noise(*arguments), atol=1e-5)
    np.testing.assert_allclose(velocity, scheduler.get_velocity(*arguments), atol=1e-5)


def test_target_of_an_epsilon_model_is_the_noise():
    config = NoiseScheduleConfig(prediction_type="epsilon")
    np.testing.assert_array_equal(prediction_target(CLEAN, NOISE, jnp.asarray(TIMESTEPS), config), NOISE)


def test_clean_latents_follow_from_velocity_and_noisy_latents():
    config, timesteps = NoiseScheduleConfig(), jnp.asarray(TIMESTEPS)
    noisy = add_noise(CLEAN, NOISE, timesteps, config)
    velocity = prediction_target(CLEAN, NOISE, timesteps, config)
    signal_rate = np.sqrt(reference_scheduler().alphas_cumprod.numpy()[TIMESTEPS])[:, None, None, None]
    np.testing.assert_allclose(signal_rate * noisy - np.sqrt(1 - signal_rate**2) * velocity, CLEAN, atol=1e-5)


def test_unknown_beta_schedule_is_refused():
    with pytest.raises(UserError, match=r"'exp'.*scaled_linear"):
        alphas_cumprod(NoiseScheduleConfig(beta_schedule="exp"))

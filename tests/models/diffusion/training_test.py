"""What the decoder is trained for, compared with diffusers' PyTorch schedulers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from seed_jax.models.diffusion import Moments
from seed_jax.models.diffusion.schedules import add_noise, divergence, prediction_target, sample, without_condition
from seed_jax.models.diffusion.unclip_config import NoiseConfig

RNG = np.random.default_rng(0)
CLEAN, NOISE = (jnp.asarray(RNG.standard_normal((6, 4, 4, 3), np.float32)) for _ in range(2))
TIMESTEPS = np.array([0, 1, 250, 500, 998, 999])


def theirs():
    return DDPMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        prediction_type="v_prediction",
    )  # fmt: skip


def test_noising_and_velocity_are_those_of_diffusers():
    config, scheduler = NoiseConfig(), theirs()
    arguments = [torch.from_numpy(np.array(each)) for each in (CLEAN, NOISE, TIMESTEPS)]
    ours = [function(CLEAN, NOISE, jnp.asarray(TIMESTEPS), config) for function in (add_noise, prediction_target)]
    # float32 sums of 1000 factors, rounded in another order: 2e-6 of numbers up to 4.
    np.testing.assert_allclose(ours[0], scheduler.add_noise(*arguments), atol=1e-5)
    np.testing.assert_allclose(ours[1], scheduler.get_velocity(*arguments), atol=1e-5)


def test_an_epsilon_model_is_trained_for_the_noise():
    config = NoiseConfig(prediction_type="epsilon")
    np.testing.assert_array_equal(prediction_target(CLEAN, NOISE, jnp.asarray(TIMESTEPS), config), NOISE)


def test_velocity_and_noisy_latents_give_the_clean_ones_back():
    config, at = NoiseConfig(), jnp.asarray(TIMESTEPS)
    noisy, velocity = (function(CLEAN, NOISE, at, config) for function in (add_noise, prediction_target))
    signal = np.sqrt(theirs().alphas_cumprod.numpy()[TIMESTEPS])[:, None, None, None]
    np.testing.assert_allclose(signal * noisy - np.sqrt(1 - signal**2) * velocity, CLEAN, atol=1e-5)


def test_divergence_is_that_of_two_gaussians():
    mean, logvar = CLEAN, 0.3 * NOISE
    normal = torch.distributions.Normal
    exact = torch.distributions.kl_divergence(
        normal(torch.from_numpy(np.array(mean)), torch.from_numpy(np.array(jnp.exp(logvar / 2)))), normal(0.0, 1.0)
    )
    found = divergence(Moments(mean, logvar))
    np.testing.assert_allclose(found, exact.mean((1, 2, 3)), rtol=1e-5)  # float32


def test_samples_have_the_moments():
    shape = (1, 64, 64, 4)
    moments = Moments(jnp.full(shape, 2.0), jnp.full(shape, float(np.log(0.25))))
    drawn = sample(moments, jax.random.key(0))
    assert float(drawn.mean()) == pytest.approx(2.0, abs=0.02)  # 16384 numbers: five standard errors
    assert float(drawn.std()) == pytest.approx(0.5, abs=0.015)


def test_a_share_of_the_labels_is_all_zero():
    labels = jnp.ones((2000, 6))
    kept = np.asarray(without_condition(labels, 0.1, jax.random.key(1)))
    rows = kept.sum(1)
    assert set(rows) == {0.0, 6.0}
    assert 0.07 < (rows == 0).mean() < 0.13  # four standard errors
    np.testing.assert_array_equal(without_condition(labels, 0.0, jax.random.key(1)), labels)

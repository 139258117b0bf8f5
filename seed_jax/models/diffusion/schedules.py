"""Noise schedules of training and the timesteps at which a sampler visits them (spec B.2, B.4)."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from seed_jax.errors import UserError
from seed_jax.models.diffusion.unclip_config import NoiseConfig
from seed_jax.models.diffusion.vae import Moments


@functools.cache
def alphas_cumprod(config: NoiseConfig) -> Float[np.ndarray, " N"]:
    """Return the share of signal (squared) left at each training timestep, in float32."""
    return np.cumprod(1.0 - _betas(config)).astype(np.float32)


def _betas(config: NoiseConfig) -> Float[np.ndarray, " N"]:
    count, first, last = config.num_train_timesteps, config.beta_start, config.beta_end
    if config.beta_schedule == "linear":
        return np.linspace(first, last, count)
    if config.beta_schedule == "scaled_linear":
        return np.linspace(first**0.5, last**0.5, count) ** 2
    if config.beta_schedule == "squaredcos_cap_v2":
        bars = [math.cos((i / count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(count + 1)]
        return np.minimum(1.0 - np.divide(bars[1:], bars[:-1]), 0.999)
    raise UserError(
        f"Unknown beta_schedule {config.beta_schedule!r}: expected linear, scaled_linear or squaredcos_cap_v2."
    )


def check_steps(config: NoiseConfig, steps: int, most: int | None = None) -> None:
    most = most or config.num_train_timesteps
    if not 1 <= steps <= most:
        raise UserError(f"{steps} sampling steps are not possible: expected 1 to {most}.")


def ascending_timesteps(config: NoiseConfig, steps: int) -> Int[np.ndarray, " S"]:
    """Spread `steps` timesteps over the schedule the way PNDM and DDIM do, lowest first."""
    check_steps(config, steps)
    count = config.num_train_timesteps
    if config.timestep_spacing == "leading":
        return np.arange(steps) * (count // steps) + config.steps_offset
    if config.timestep_spacing == "linspace":
        return np.linspace(0, count - 1, steps).round().astype(np.int64)
    if config.timestep_spacing == "trailing":
        return np.round(np.arange(count, 0, -count / steps))[::-1].astype(np.int64) - 1
    raise _unknown_spacing(config)


def solver_timesteps(config: NoiseConfig, steps: int) -> Int[np.ndarray, " S"]:
    """Spread `steps` timesteps as DPM-Solver does, with room for a last step to no noise; highest first."""
    check_steps(config, steps, config.num_train_timesteps - 1)
    count = config.num_train_timesteps
    if config.timestep_spacing == "leading":
        return (np.arange(steps + 1) * (count // (steps + 1)))[:0:-1] + config.steps_offset
    if config.timestep_spacing == "linspace":
        return np.linspace(0, count - 1, steps + 1).round()[:0:-1].astype(np.int64)
    if config.timestep_spacing == "trailing":
        return np.round(np.arange(count, 0, -count / steps)).astype(np.int64) - 1
    raise _unknown_spacing(config)


def _unknown_spacing(config: NoiseConfig) -> UserError:
    return UserError(f"Unknown timestep_spacing {config.timestep_spacing!r}: expected leading, linspace or trailing.")


def class_labels(
    embeddings: Float[Array, "B E"],
    noise: Float[Array, "B E"],
    levels: Int[Array, " B"],
    *,
    mean: Float[Array, " E"],
    std: Float[Array, " E"],
    config: NoiseConfig,
) -> Float[Array, "B L"]:
    """Return the noised embedding and the sinusoid of its noise level side by side, in float32.

    Level 0 still adds noise, of standard deviation 0.0064 in normalised units. The label of an unconditional half is
    not made here: it is all zeros, the level's half included.
    """
    mean, std = (value.astype(jnp.float32)[None] for value in (mean, std))
    alphas = jnp.asarray(alphas_cumprod(config))[levels][:, None]
    clean = (embeddings.astype(jnp.float32) - mean) / std
    noisy = jnp.sqrt(alphas) * clean + jnp.sqrt(1 - alphas) * noise
    sinusoids = jnp.asarray(_sinusoids(config.num_train_timesteps, embeddings.shape[-1]))
    return jnp.concatenate([noisy * std + mean, sinusoids[levels]], axis=-1)


@functools.cache
def _sinusoids(levels: int, width: int) -> Float[np.ndarray, "N W"]:
    """Return, for every level, cosines then sines of the level times frequencies from 1 down to almost 1 / 10000.

    In float64: the angle of level 999 in float32 is off by as much as 6e-5.
    """
    frequencies = np.exp(-np.log(10000.0) * np.arange(width // 2) / (width // 2))
    angles = np.arange(levels)[:, None] * frequencies[None]
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)


PREDICTIONS = ("v_prediction", "epsilon")


def add_noise(
    clean: Float[Array, "B ..."], noise: Float[Array, "B ..."], timesteps: Int[Array, " B"], config: NoiseConfig
) -> Float[Array, "B ..."]:
    """Return latents as they are at a timestep: sqrt(a) clean + sqrt(1 - a) noise."""
    signal, rest = _shares(timesteps, config, clean.ndim)
    return signal * clean + rest * noise


def prediction_target(
    clean: Float[Array, "B ..."], noise: Float[Array, "B ..."], timesteps: Int[Array, " B"], config: NoiseConfig
) -> Float[Array, "B ..."]:
    """Return what the UNet should say: the velocity sqrt(a) noise - sqrt(1 - a) clean, or the noise."""
    if config.prediction_type == "epsilon":
        return noise
    signal, rest = _shares(timesteps, config, clean.ndim)
    return signal * noise - rest * clean


def sample(moments: Moments, key: Key[Array, ""]) -> Float[Array, "B h w C"]:
    """Draw latents from the encoder's Gaussian."""
    return moments.mean + jnp.exp(0.5 * moments.logvar) * jax.random.normal(key, moments.mean.shape)


def divergence(moments: Moments) -> Float[Array, " B"]:
    """Return the divergence of the encoder's Gaussian from the standard one, in nats per number of a latent."""
    nats = jnp.square(moments.mean) + jnp.exp(moments.logvar) - 1.0 - moments.logvar
    return 0.5 * nats.mean((1, 2, 3))


def without_condition(labels: Float[Array, "B L"], share: float, key: Key[Array, ""]) -> Float[Array, "B L"]:
    """Return class labels of which a share is zeros, as the half has it that guidance leads away from."""
    dropped = jax.random.bernoulli(key, share, labels.shape[:1])
    return jnp.where(dropped[:, None], 0.0, labels)


def _shares(timesteps: Int[Array, " B"], config: NoiseConfig, ndim: int) -> tuple[Array, Array]:
    alphas = jnp.asarray(alphas_cumprod(config))[timesteps].reshape(-1, *(1,) * (ndim - 1))
    return jnp.sqrt(alphas), jnp.sqrt(1 - alphas)

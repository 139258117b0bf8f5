"""Noise schedules of diffusion training: the forward process and the prediction targets (spec B.2, B.4)."""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from seed_jax.errors import UserError

PREDICTION_TYPES = ("epsilon", "v_prediction")


@dataclasses.dataclass(frozen=True)
class NoiseScheduleConfig:
    """A noise schedule, with the options of its samplers; names and values are those of diffusers' schedulers.

    The defaults are stable-diffusion-2-1-unclip's.

    Attributes:
        beta_schedule: "linear", "scaled_linear" or "squaredcos_cap_v2".
        prediction_type: what the UNet predicts, one of `PREDICTION_TYPES`.
        timestep_spacing: how samplers spread their timesteps: "leading", "linspace" or "trailing".
        steps_offset: added to the timesteps of "leading".
        set_alpha_to_one: whether the last step of a sampler removes all noise, or as much as timestep 0 has.
    """

    num_train_timesteps: int = 1000
    beta_schedule: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction_type: str = "v_prediction"
    timestep_spacing: str = "leading"
    steps_offset: int = 1
    set_alpha_to_one: bool = False


@functools.cache
def alphas_cumprod(config: NoiseScheduleConfig) -> Float[np.ndarray, " N"]:
    """Return the cumulative product of alphas, the variance of the signal, per training timestep in float32."""
    return np.cumprod(1.0 - _betas(config)).astype(np.float32)


def _betas(config: NoiseScheduleConfig) -> Float[np.ndarray, " N"]:
    count, start, end = config.num_train_timesteps, config.beta_start, config.beta_end
    if config.beta_schedule == "linear":
        return np.linspace(start, end, count)
    if config.beta_schedule == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, count) ** 2
    if config.beta_schedule == "squaredcos_cap_v2":
        alpha_bars = [math.cos((i / count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(count + 1)]
        return np.minimum(1.0 - np.divide(alpha_bars[1:], alpha_bars[:-1]), 0.999)
    raise UserError(
        f"Unknown beta_schedule {config.beta_schedule!r}: expected linear, scaled_linear or squaredcos_cap_v2."
    )


def add_noise(
    clean: Float[Array, "B ..."],
    noise: Float[Array, "B ..."],
    timesteps: Int[Array, " B"],
    config: NoiseScheduleConfig,
) -> Float[Array, "B ..."]:
    """Return the noisy values at each timestep: sqrt(a) clean + sqrt(1 - a) noise."""
    signal_rate, noise_rate = _rates(timesteps, config, clean.ndim)
    return signal_rate * clean + noise_rate * noise


def prediction_target(
    clean: Float[Array, "B ..."],
    noise: Float[Array, "B ..."],
    timesteps: Int[Array, " B"],
    config: NoiseScheduleConfig,
) -> Float[Array, "B ..."]:
    """Return the UNet's training target: the velocity sqrt(a) noise - sqrt(1 - a) clean, or the noise."""
    if config.prediction_type == "epsilon":
        return noise
    signal_rate, noise_rate = _rates(timesteps, config, clean.ndim)
    return signal_rate * noise - noise_rate * clean


def _rates(timesteps: Int[Array, " B"], config: NoiseScheduleConfig, ndim: int) -> tuple[Array, Array]:
    """Return sqrt(a) and sqrt(1 - a), broadcastable over arrays with `ndim` dimensions."""
    alphas = jnp.asarray(alphas_cumprod(config))[timesteps].reshape(-1, *(1,) * (ndim - 1))
    return jnp.sqrt(alphas), jnp.sqrt(1 - alphas)

"""Noise schedules of training and the timesteps at which a sampler visits them (spec B.2, B.4)."""

import functools
import math

import numpy as np
from jaxtyping import Float, Int

from seed_jax.errors import UserError
from seed_jax.models.unclip.config import NoiseConfig


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

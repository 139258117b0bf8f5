"""From a generation embedding to the UNet's class label: normalise, add noise, append the noise level (spec B.2)."""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from seed_jax.models.unclip.config import NoiseConfig
from seed_jax.models.unclip.schedules import alphas_cumprod


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

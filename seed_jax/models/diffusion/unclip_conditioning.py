"""The condition of unCLIP's UNet: text states, and class labels made of a noised image embedding (spec B.2)."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from seed_jax.models.diffusion.noise_schedule import NoiseScheduleConfig, add_noise


@flax.struct.dataclass
class UnclipCondition:
    """What an image is generated from: the text states of its prompt and its class labels."""

    text_states: Float[Array, "B T D"]
    class_labels: Float[Array, "B L"]


def class_labels(
    embeddings: Float[Array, "B E"],
    noise: Float[Array, "B E"],
    levels: Int[Array, " B"],
    *,
    mean: Float[Array, " E"],
    std: Float[Array, " E"],
    config: NoiseScheduleConfig,
) -> Float[Array, "B L"]:
    """Return the noised embedding concatenated with the sinusoidal embedding of its noise level, in float32.

    Level 0 still adds noise, of standard deviation 0.0064 in normalized units. The labels of the unconditional half of
    guidance are not made here: they are all zeros, the level's half included.

    Args:
        embeddings: image embeddings.
        noise: standard normal noise.
        levels: timestep of the schedule per image, 0 for least noise.
        mean: of the embeddings in training, subtracted before noise is added.
        std: their standard deviation.
        config: the schedule; only its betas matter.
    """
    mean, std = mean.astype(jnp.float32)[None], std.astype(jnp.float32)[None]
    normalized = (embeddings.astype(jnp.float32) - mean) / std
    noisy = add_noise(normalized, noise, levels, config)
    sinusoids = jnp.asarray(_sinusoids(config.num_train_timesteps, embeddings.shape[-1]))
    return jnp.concatenate([noisy * std + mean, sinusoids[levels]], axis=-1)


@functools.cache
def _sinusoids(levels: int, width: int) -> Float[np.ndarray, "N W"]:
    """Return, for every level, cosines then sines of the level times frequencies from 1 down to almost 1 / 10000.

    Computed in float64: in float32 the angle of level 999 is off by up to 6e-5.
    """
    frequencies = np.exp(-np.log(10000.0) * np.arange(width // 2) / (width // 2))
    angles = np.arange(levels)[:, None] * frequencies[None]
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)


def drop_labels(labels: Float[Array, "B L"], rate: float, key: Key[Array, ""]) -> Float[Array, "B L"]:
    """Replace the class labels of a random fraction of images by zeros, to train for classifier-free guidance."""
    dropped = jax.random.bernoulli(key, rate, labels.shape[:1])
    return jnp.where(dropped[:, None], 0.0, labels)

"""What a denoising UNet and its autoencoder are trained for, as pure functions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from seed_jax.models.unclip.config import NoiseConfig
from seed_jax.models.unclip.schedules import alphas_cumprod
from seed_jax.models.unclip.vae import Moments

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

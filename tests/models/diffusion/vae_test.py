"""The autoencoder against the recorded original and PyTorch, and decoding in tiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seed_jax.models.diffusion.vae import LatentDistribution, decode_in_tiles
from tests.models.diffusion.cases import decoder, error, tensors


def test_decode_equals_the_originals():
    unclip, params = decoder()
    pieces = tensors("pieces")
    pixels = jax.jit(unclip.vae.decode)(params["vae"], pieces["vae.in_z"])
    assert error(pixels, pieces["vae.decode"]) < 1e-4


def test_encode_equals_the_originals():
    unclip, params = decoder()
    pieces = tensors("pieces")
    latents = jax.jit(unclip.vae.encode)(params["vae"], pieces["vae.in_x"])
    assert error(latents.mean, pieces["vae.encode_mean"]) < 1e-4
    assert error(latents.logvar, pieces["vae.encode_logvar"]) < 1e-4


def test_encode_image_returns_scaled_latents():
    unclip, params = decoder()
    pieces, scale = tensors("pieces"), unclip.config.vae.scaling_factor
    latents = jax.jit(unclip.encode_image)(params, pieces["vae.in_x"] / 2 + 0.5)
    assert error(latents.mean / scale, pieces["vae.encode_mean"]) < 1e-4
    assert error(latents.logvar - 2 * np.log(scale), pieces["vae.encode_logvar"]) < 1e-4


def test_kl_divergence_equals_pytorchs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    mean, logvar = (rng.standard_normal((6, 4, 4, 3), np.float32) for _ in range(2))
    logvar *= 0.3
    normal = torch.distributions.Normal
    exact = torch.distributions.kl_divergence(
        normal(torch.from_numpy(mean), torch.from_numpy(np.exp(logvar / 2))), normal(0.0, 1.0)
    )
    divergence = LatentDistribution(jnp.asarray(mean), jnp.asarray(logvar)).kl_divergence()
    np.testing.assert_allclose(divergence, exact.mean((1, 2, 3)), rtol=1e-5)  # float32


def test_samples_have_the_mean_and_variance():
    shape = (1, 64, 64, 4)
    distribution = LatentDistribution(jnp.full(shape, 2.0), jnp.full(shape, float(np.log(0.25))))
    samples = distribution.sample(jax.random.key(0))
    assert float(samples.mean()) == pytest.approx(2.0, abs=0.02)  # 16384 values: five standard errors
    assert float(samples.std()) == pytest.approx(0.5, abs=0.015)


@pytest.mark.parametrize(("height", "width", "tile"), [(8, 8, 8), (8, 8, 20), (9, 16, 4), (7, 5, 3), (6, 6, 1)])
def test_tiles_cover_the_image_without_seams(height, width, tile):
    """With a decoder whose output depends on single latents, tiles give the same as decoding the whole."""
    latents = jax.random.normal(jax.random.key(0), (2, height, width, 4))

    def decode(z):
        return jnp.repeat(jnp.repeat(z[..., :3] ** 2, 2, axis=1), 2, axis=2)

    tiled = decode_in_tiles(decode, latents, tile=tile, factor=2)
    assert error(tiled, decode(latents)) < 1e-5


def test_one_large_tile_is_exact():
    unclip, params = decoder()
    latents = tensors("pndm_5")["latents_final"]
    decode = jax.jit(unclip.decode_latents, static_argnames="tile")
    assert error(decode(params, latents, tile=64), decode(params, latents)) < 1e-6

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seed_jax.models.diffusion.vae import decode_in_tiles
from tests.models.diffusion.cases import decoder, error, tensors


def test_decode_equals_the_originals():
    unclip, params = decoder()
    pieces = tensors("pieces")
    pixels = jax.jit(unclip.vae.decode)(params["vae"], pieces["vae.in_z"])
    assert error(pixels, pieces["vae.decode"]) < 1e-4


def test_encode_equals_the_originals():
    unclip, params = decoder()
    pieces = tensors("pieces")
    moments = jax.jit(unclip.vae.encode)(params["vae"], pieces["vae.in_x"])
    assert error(moments.mean, pieces["vae.encode_mean"]) < 1e-4
    assert error(moments.logvar, pieces["vae.encode_logvar"]) < 1e-4


def test_encode_pixels_gives_what_decode_latents_takes():
    unclip, params = decoder()
    pieces, scale = tensors("pieces"), unclip.config.vae.scaling_factor
    moments = jax.jit(unclip.encode_pixels)(params, pieces["vae.in_x"] / 2 + 0.5)
    assert error(moments.mean / scale, pieces["vae.encode_mean"]) < 1e-4
    assert error(moments.logvar - 2 * np.log(scale), pieces["vae.encode_logvar"]) < 1e-4


@pytest.mark.parametrize(("height", "width", "tile"), [(8, 8, 8), (8, 8, 20), (9, 16, 4), (7, 5, 3), (6, 6, 1)])
def test_tiles_cover_the_picture_without_seams(height, width, tile):
    """A decoder that looks at single latents cannot be told from decoding at once."""
    latents = jax.random.normal(jax.random.key(0), (2, height, width, 4))

    def decode(z):
        return jnp.repeat(jnp.repeat(z[..., :3] ** 2, 2, axis=1), 2, axis=2)

    tiled = decode_in_tiles(decode, latents, tile=tile, factor=2)
    assert error(tiled, decode(latents)) < 1e-5


def test_one_large_tile_is_exact():
    unclip, params = decoder()
    latents = tensors("pndm_5")["latents_final"]
    at_once, in_one = (
        jax.jit(functools.partial(unclip.decode_latents, tile=tile))(params, latents) for tile in (None, 64)
    )
    assert error(in_one, at_once) < 1e-6

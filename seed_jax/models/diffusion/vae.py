"""The autoencoder between pixels and latents (spec B.3), and its decoding in tiles."""

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from seed_jax.models.diffusion import flax_blocks
from seed_jax.models.diffusion.unclip_config import VAEConfig
from seed_jax.precision import Precision


@flax.struct.dataclass
class Moments:
    """The encoder's Gaussian over unscaled latents."""

    mean: Float[Array, "B h w C"]
    logvar: Float[Array, "B h w C"]


@dataclasses.dataclass(frozen=True)
class VAE:
    """Encode pixels to latents and decode them; functional like `UNet`."""

    config: VAEConfig
    precision: Precision = Precision()
    attention: str = "chunked"

    def init(self, rng: Key[Array, ""]) -> dict:
        """Make random parameters with logical axis names."""
        c = self.config
        pixels = jnp.zeros((1, c.in_channels, 2 * c.factor, 2 * c.factor))
        with self._corrected():
            shapes = jax.eval_shape(self._module().init, rng, pixels)["params"]
        return flax_blocks.initialise(shapes, rng, self.precision.param_dtype)

    def decode(self, params: dict, latents: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
        """Return pixels around -1..1 (float32, not clipped) for unscaled latents."""
        with self._corrected():
            y = self._module().apply({"params": params}, latents, method=lambda m, z: m.decoder(m.post_quant_conv(z)))
        return y.astype(jnp.float32)

    def encode(self, params: dict, pixels: Float[Array, "B H W 3"]) -> Moments:
        """Return the moments of unscaled latents for pixels in -1..1."""
        with self._corrected():
            y = self._module().apply({"params": params}, pixels, method=lambda m, x: m.quant_conv(m.encoder(x)))
        mean, logvar = jnp.split(y.astype(jnp.float32), 2, axis=-1)
        return Moments(mean, jnp.clip(logvar, -30.0, 20.0))

    def _corrected(self):
        return flax_blocks.corrected(groups=self.config.norm_groups, precision=self.precision, attention=self.attention)

    def _module(self):
        c = self.config
        levels = len(c.block_channels)
        return flax_blocks.module("vae").FlaxAutoencoderKL(
            in_channels=c.in_channels,
            out_channels=c.out_channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=c.block_channels,
            layers_per_block=c.layers_per_block,
            latent_channels=c.latent_channels,
            norm_num_groups=c.norm_groups,
            sample_size=c.sample_size,
            scaling_factor=c.scaling_factor,
            dtype=self.precision.compute_dtype,
        )


def decode_in_tiles(
    decode: Callable[[Float[Array, "B t t C"]], Float[Array, "B s s 3"]],
    latents: Float[Array, "B h w C"],
    *,
    tile: int,
    factor: int,
) -> Float[Array, "B H W 3"]:
    """Decode square tiles one after the other and blend them where they overlap (by a quarter at least).

    Memory then depends on the tile. The result differs a little from decoding at once, since norms and attention see
    one tile only; a latent that fits in one tile is decoded exactly.

    Args:
        tile: side of a tile in latents.
        factor: pixels per latent.
    """
    height, width = latents.shape[1:3]
    tile_h, tile_w = min(tile, height), min(tile, width)
    corners = np.array([(y, x) for y in _starts(height, tile_h) for x in _starts(width, tile_w)])
    weight = jnp.asarray(np.outer(_ramp(tile_h * factor), _ramp(tile_w * factor))[None, :, :, None])

    def add(canvas, corner):
        y, x = corner[0], corner[1]
        part = jax.lax.dynamic_slice(latents, (0, y, x, 0), (latents.shape[0], tile_h, tile_w, latents.shape[3]))
        pixels = jnp.concatenate(
            [decode(part) * weight, jnp.broadcast_to(weight, (part.shape[0], *weight.shape[1:]))], -1
        )
        place = (0, y * factor, x * factor, 0)
        before = jax.lax.dynamic_slice(canvas, place, pixels.shape)
        return jax.lax.dynamic_update_slice(canvas, before + pixels, place), None

    blank = jnp.zeros((latents.shape[0], height * factor, width * factor, 4), jnp.float32)
    canvas, _ = jax.lax.scan(add, blank, jnp.asarray(corners))
    return canvas[..., :3] / canvas[..., 3:]


def _starts(size: int, tile: int) -> list[int]:
    """Spread the fewest tiles that overlap by a quarter evenly over `size`."""
    stride = max(1, tile - tile // 4)
    count = 1 + -(-(size - tile) // stride)
    return [round(i * (size - tile) / max(1, count - 1)) for i in range(count)]


def _ramp(size: int) -> Float[np.ndarray, " N"]:
    """Rise and fall linearly over a quarter of the size at either end, never reaching zero."""
    distance = np.minimum(np.arange(size), np.arange(size)[::-1]) + 1.0
    return np.minimum(1.0, distance / max(1, size // 4)).astype(np.float32)

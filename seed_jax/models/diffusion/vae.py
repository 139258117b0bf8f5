"""The variational autoencoder between pixels and latents (spec B.3), and decoding in tiles."""

import dataclasses
import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from seed_jax.errors import UserError
from seed_jax.models.abstract import traced_once
from seed_jax.models.diffusion import flax_blocks
from seed_jax.precision import Precision
from seed_jax.typing import Tree

DECODER_PARAMS = ("decoder", "post_quant_conv")  # parameters from latents to pixels; the encoder's are the others


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Sizes of the autoencoder; the defaults are Stable Diffusion 2.1's, whose `sample_size` is 512 in version 1."""

    sample_size: int = 768
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_groups: int = 32
    scaling_factor: float = 0.18215

    def __post_init__(self):
        if not self.block_channels or any(channels % self.norm_groups for channels in self.block_channels):
            raise UserError(
                f"VAEConfig: block_channels {self.block_channels} are not divisible by {self.norm_groups} norm groups."
            )

    @property
    def factor(self) -> int:
        """Pixels per latent along a side."""
        return 2 ** (len(self.block_channels) - 1)


@flax.struct.dataclass
class LatentDistribution:
    """The encoder's output: a diagonal Gaussian over latents."""

    mean: Float[Array, "B h w C"]
    logvar: Float[Array, "B h w C"]

    def sample(self, key: Key[Array, ""]) -> Float[Array, "B h w C"]:
        """Draw latents."""
        return self.mean + jnp.exp(0.5 * self.logvar) * jax.random.normal(key, self.mean.shape)

    def kl_divergence(self) -> Float[Array, " B"]:
        """Return the KL divergence from the standard normal distribution, in nats per element of a latent."""
        nats = jnp.square(self.mean) + jnp.exp(self.logvar) - 1.0 - self.logvar
        return 0.5 * nats.mean((1, 2, 3))


@dataclasses.dataclass(frozen=True)
class VAE:
    """Encode pixels as latents and decode them; functional like `UNet`.

    `encode` and `decode` work on the latents of the network; `encode_image` and `decode_latents` on images in 0..1 and
    on the latents that a UNet denoises, which are scaled by `scaling_factor`.

    Attributes:
        attention: implementation of `attend` for the large score matrices.
    """

    config: VAEConfig
    precision: Precision = Precision()
    attention: str = "chunked"

    def init(self, rng: Key[Array, ""]) -> Tree:
        """Create random parameters with logical axis names."""
        return flax_blocks.initialize(_shapes(self), rng, self.precision.param_dtype)

    def decode(self, params: Tree, latents: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
        """Return pixels around -1..1 (float32, not clipped) for unscaled latents."""
        with self._corrected():
            y = self._module().apply({"params": params}, latents, method=lambda m, z: m.decoder(m.post_quant_conv(z)))
        return y.astype(jnp.float32)

    def encode(self, params: Tree, pixels: Float[Array, "B H W 3"]) -> LatentDistribution:
        """Return the distribution of unscaled latents for pixels in -1..1."""
        with self._corrected():
            y = self._module().apply({"params": params}, pixels, method=lambda m, x: m.quant_conv(m.encoder(x)))
        mean, logvar = jnp.split(y.astype(jnp.float32), 2, axis=-1)
        return LatentDistribution(mean, jnp.clip(logvar, -30.0, 20.0))

    def decode_latents(
        self, params: Tree, latents: Float[Array, "B h w C"], *, tile: int | None = None
    ) -> Float[Array, "B H W 3"]:
        """Return images in 0..1 for scaled latents, decoding one image at a time.

        Args:
            params: parameters of the autoencoder.
            latents: scaled latents.
            tile: side of a tile in latents, for decoding in tiles (less memory, slightly different); None: whole.
        """
        decode = functools.partial(self.decode, params)
        if tile is not None:
            decode = functools.partial(decode_in_tiles, decode, tile=tile, factor=self.config.factor)
        pixels = jax.lax.map(lambda z: decode(z[None])[0], latents / self.config.scaling_factor)
        return jnp.clip(pixels / 2 + 0.5, 0.0, 1.0)

    def encode_image(self, params: Tree, image: Float[Array, "B H W 3"]) -> LatentDistribution:
        """Return the distribution of scaled latents for images in 0..1."""
        latents, scale = self.encode(params, image * 2 - 1), self.config.scaling_factor
        return LatentDistribution(latents.mean * scale, latents.logvar + 2 * jnp.log(scale))

    def _corrected(self):
        return flax_blocks.corrected(groups=self.config.norm_groups, precision=self.precision, attention=self.attention)

    def _module(self):
        config = self.config
        levels = len(config.block_channels)
        return flax_blocks.module("vae").FlaxAutoencoderKL(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.block_channels,
            layers_per_block=config.layers_per_block,
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_groups,
            sample_size=config.sample_size,
            scaling_factor=config.scaling_factor,
            dtype=self.precision.compute_dtype,
        )


@traced_once
def _shapes(vae: VAE) -> Tree:
    """Return the shapes of the parameters."""
    channels, side = vae.config.in_channels, 2 * vae.config.factor

    def init() -> Tree:
        return vae._module().init(jax.random.key(0), jnp.zeros((1, channels, side, side)))["params"]

    with vae._corrected():
        return jax.eval_shape(init)


def decode_in_tiles(
    decode: Callable[[Float[Array, "B t t C"]], Float[Array, "B s s 3"]],
    latents: Float[Array, "B h w C"],
    *,
    tile: int,
    factor: int,
) -> Float[Array, "B H W 3"]:
    """Decode square tiles sequentially and blend them where they overlap (by at least a quarter of a tile).

    The memory then depends on the tile size. The result differs slightly from decoding the whole latent, since norms
    and attention see one tile only; a latent that fits in one tile is decoded exactly.

    Args:
        decode: latents -> pixels, `factor` times larger.
        latents: latents of images.
        tile: side of a tile in latents.
        factor: pixels per latent.
    """
    height, width = latents.shape[1:3]
    tile_h, tile_w = min(tile, height), min(tile, width)
    corners = np.array([(y, x) for y in _tile_starts(height, tile_h) for x in _tile_starts(width, tile_w)])
    weight = jnp.asarray(np.outer(_blend_ramp(tile_h * factor), _blend_ramp(tile_w * factor))[None, :, :, None])

    def add_tile(canvas, corner):
        y, x = corner[0], corner[1]
        part = jax.lax.dynamic_slice(latents, (0, y, x, 0), (latents.shape[0], tile_h, tile_w, latents.shape[3]))
        weights = jnp.broadcast_to(weight, (part.shape[0], *weight.shape[1:]))
        weighted = jnp.concatenate([decode(part) * weight, weights], -1)
        start = (0, y * factor, x * factor, 0)
        current = jax.lax.dynamic_slice(canvas, start, weighted.shape)
        return jax.lax.dynamic_update_slice(canvas, current + weighted, start), None

    # The fourth channel accumulates the weights.
    canvas = jnp.zeros((latents.shape[0], height * factor, width * factor, 4), jnp.float32)
    canvas, _ = jax.lax.scan(add_tile, canvas, jnp.asarray(corners))
    return canvas[..., :3] / canvas[..., 3:]


def _tile_starts(size: int, tile: int) -> list[int]:
    """Spread the fewest tiles that overlap by a quarter evenly over `size`."""
    stride = max(1, tile - tile // 4)
    count = 1 + -(-(size - tile) // stride)
    return [round(i * (size - tile) / max(1, count - 1)) for i in range(count)]


def _blend_ramp(size: int) -> Float[np.ndarray, " N"]:
    """Return weights that rise and fall linearly over a quarter of `size` at either end and are never zero."""
    distance = np.minimum(np.arange(size), np.arange(size)[::-1]) + 1.0
    return np.minimum(1.0, distance / max(1, size // 4)).astype(np.float32)

"""The unCLIP decoder as a whole: its parameters and the pure functions on them."""

import dataclasses
import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from seed_jax.errors import UserError
from seed_jax.models.clip.text import ClipText
from seed_jax.models.diffusion.samplers import Steps, Trajectory, sample
from seed_jax.models.diffusion.schedules import class_labels
from seed_jax.models.diffusion.unclip_config import UnclipConfig
from seed_jax.models.diffusion.unet import UNet
from seed_jax.models.diffusion.vae import VAE, Moments, decode_in_tiles
from seed_jax.precision import Precision

PARTS = ("unet", "vae", "text", "normalizer")


@flax.struct.dataclass
class Condition:
    """What a picture is drawn from: the states of its prompt and its class label."""

    text_states: Float[Array, "B T D"]
    class_labels: Float[Array, "B L"]


@dataclasses.dataclass(frozen=True)
class Unclip:
    """Draw from generation embeddings: class label, guided denoising, decoding.

    Every method takes the whole parameter tree {"unet", "vae", "text", "normalizer"}; pictures and latents are
    channels last. Nothing mixes the pictures of a batch.

    Attributes:
        attention: implementation of `attend` for the large score matrices.
        remat: recompute the UNet's blocks in a backward pass.
    """

    config: UnclipConfig
    precision: Precision = Precision()
    vae_precision: Precision = Precision()
    attention: str = "chunked"
    remat: bool = False

    @property
    def unet(self) -> UNet:
        return UNet(self.config.unet, self.precision, self.attention, self.remat)

    @property
    def vae(self) -> VAE:
        return VAE(self.config.vae, self.vae_precision, self.attention)

    @property
    def text(self) -> ClipText:
        return ClipText(self.config.text, self.precision)

    def init(self, rng: Key[Array, ""]) -> dict:
        """Make random parameters with logical axis names; the normaliser starts as the identity."""
        unet, vae, text = jax.random.split(rng, 3)
        width = self.config.embedding_width
        return {
            "unet": self.unet.init(unet),
            "vae": self.vae.init(vae),
            "text": self.text.init(text, jnp.zeros((1, self.config.text.max_length), jnp.int32))["params"],
            "normalizer": {"mean": jnp.zeros(width), "std": jnp.ones(width)},
        }

    def text_states(self, params: dict, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Return the states of prompts."""
        return self.text.apply({"params": params["text"]}, tokens)

    def class_labels(
        self, params: dict, embeddings: Float[Array, "B E"], noise: Float[Array, "B E"], level: Int[Array, " B"]
    ) -> Float[Array, "B L"]:
        """Return the class labels of generation embeddings with `noise` of `level` added."""
        if embeddings.shape[-1] != self.config.embedding_width:
            raise UserError(
                f"The generation embeddings are {embeddings.shape[-1]} wide, but this decoder expects "
                f"{self.config.embedding_width}: the tokenizer and the decoder do not belong together."
            )
        return class_labels(embeddings, noise, level, config=self.config.embedding_noise, **params["normalizer"])

    def denoise(
        self, params: dict, latents: Float[Array, "B h w C"], timesteps: Int[Array, " B"], condition: Condition
    ) -> Float[Array, "B h w C"]:
        """Return the UNet's prediction in float32: velocity or noise, as the config says."""
        return self.unet.apply(params["unet"], latents, timesteps, condition.text_states, condition.class_labels)

    def draw_latents(
        self,
        params: dict,
        latents: Float[Array, "B h w C"],
        condition: Condition,
        steps: Steps,
        *,
        away_from: Condition | None = None,
        guidance_scale: Float[Array, ""] | float = 1.0,
        keep_each: bool = False,
        on_step: Callable[[Int[Array, ""]], None] | None = None,
    ) -> Trajectory:
        """Denoise `latents` along `steps`.

        Args:
            away_from: the unconditional (or negative) condition; None runs without guidance, in half the time.
        """
        if away_from is None:
            model = functools.partial(self._plain, params, condition)
        else:
            model = functools.partial(self._guided, params, _interleave(away_from, condition), guidance_scale)
        return sample(model, latents, steps, keep_each=keep_each, on_step=on_step)

    def _plain(self, params, condition, x, t):
        return self.denoise(params, x, jnp.full(x.shape[:1], t), condition)

    def _guided(self, params, both, scale, x, t):
        y = self.denoise(params, jnp.repeat(x, 2, axis=0), jnp.full((2 * x.shape[0],), t), both)
        without, with_ = y[0::2], y[1::2]
        return without + scale * (with_ - without)

    def decode_latents(
        self, params: dict, latents: Float[Array, "B h w C"], *, tile: int | None = None
    ) -> Float[Array, "B H W 3"]:
        """Return pixels in 0..1, one picture decoded at a time.

        Args:
            tile: side in latents of the tiles to decode in (less memory, slightly different); None: at once.
        """
        decode = functools.partial(self.vae.decode, params["vae"])
        if tile is not None:
            decode = functools.partial(decode_in_tiles, decode, tile=tile, factor=self.config.vae.factor)
        pixels = jax.lax.map(lambda z: decode(z[None])[0], latents / self.config.vae.scaling_factor)
        return jnp.clip(pixels / 2 + 0.5, 0.0, 1.0)

    def encode_pixels(self, params: dict, pixels: Float[Array, "B H W 3"]) -> Moments:
        """Return the moments of the latents the UNet works on, for pixels in 0..1."""
        moments, scale = self.vae.encode(params["vae"], pixels * 2 - 1), self.config.vae.scaling_factor
        return Moments(moments.mean * scale, moments.logvar + 2 * jnp.log(scale))


def _interleave(first: Condition, second: Condition) -> Condition:
    """Put the two conditions of a picture next to each other, so that a batch cut over devices stays cut."""
    return jax.tree.map(lambda a, b: jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:]), first, second)

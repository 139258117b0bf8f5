"""What every decoder shares: a UNet on an autoencoder's latents, conditioned on the states of a text encoder."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from seed_jax.errors import UserError
from seed_jax.models.abstract import traced_once
from seed_jax.models.clip.text import ClipText, ClipTextConfig
from seed_jax.models.diffusion.samplers import SamplerSteps, Trajectory, guided, sample
from seed_jax.models.diffusion.unet import UNet, UNetConfig
from seed_jax.models.diffusion.vae import VAE, LatentDistribution, VAEConfig
from seed_jax.precision import Precision
from seed_jax.typing import Tree


def check_parts(name: str, unet: UNetConfig, vae: VAEConfig, text: ClipTextConfig) -> None:
    """Raise UserError if the parts of a decoder do not fit together; `name` is that of its config class."""
    if text.hidden_size != unet.text_width:
        raise UserError(f"{name}: the text encoder is {text.hidden_size} wide, the UNet expects {unet.text_width}.")
    if vae.latent_channels != unet.in_channels:
        raise UserError(
            f"{name}: the autoencoder has {vae.latent_channels} latent channels, the UNet expects {unet.in_channels}."
        )


@dataclasses.dataclass(frozen=True)
class LatentDiffusion:
    """Base class of the decoders: the networks and the pure functions on their parameters.

    Every method takes the whole parameter tree {"unet", "vae", "text", ...}. Images and latents are channels last. The
    images of a batch are independent.

    Attributes:
        config: sizes.
        precision: dtypes of the UNet and the text encoder.
        vae_precision: dtypes of the autoencoder.
        attention: implementation of `attend` for the large score matrices.
        remat: recompute the UNet's blocks in the backward pass.
    """

    config: Any
    precision: Precision = Precision()
    vae_precision: Precision = Precision()
    attention: str = "chunked"
    remat: bool = False

    @property
    def unet(self) -> UNet:
        """The denoising network."""
        return UNet(self.config.unet, self.precision, self.attention, self.remat)

    @property
    def vae(self) -> VAE:
        """The autoencoder."""
        return VAE(self.config.vae, self.vae_precision, self.attention)

    @property
    def text(self) -> ClipText:
        """The text encoder."""
        return ClipText(self.config.text, self.precision)

    def init(self, rng: Key[Array, ""]) -> Tree:
        """Create random parameters with logical axis names."""
        unet_rng, vae_rng, text_rng = jax.random.split(rng, 3)
        return {
            "unet": self.unet.init(unet_rng),
            "vae": self.vae.init(vae_rng),
            "text": self.text.init(text_rng, jnp.zeros((1, self.config.text.max_length), jnp.int32))["params"],
        }

    @traced_once
    def abstract_params(self) -> Tree:
        """Return the result of `init` as abstract arrays."""
        # The key is made inside: the devices of a mesh may exist in a plan only.
        return jax.eval_shape(lambda: self.init(jax.random.key(0)))

    def encode_text(self, params: Tree, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Return the text states of tokenized prompts."""
        states = self.text.apply({"params": params["text"]}, tokens)
        assert isinstance(states, jax.Array)  # a tuple only with mutable collections
        return states

    def denoise(
        self, params: Tree, latents: Float[Array, "B h w C"], timesteps: Int[Array, " B"], condition: Any
    ) -> Float[Array, "B h w C"]:
        """Return the UNet's prediction in float32: velocity or noise, according to the config."""
        raise NotImplementedError

    def sample_latents(
        self,
        params: Tree,
        latents: Float[Array, "B h w C"],
        condition: Any,
        steps: SamplerSteps,
        *,
        negative: Any = None,
        guidance_scale: Float[Array, ""] | float = 1.0,
        return_intermediates: bool = False,
        on_step: Callable[[Int[Array, ""]], None] | None = None,
    ) -> Trajectory:
        """Denoise `latents` with classifier-free guidance; arguments as in `samplers.sample` and `samplers.guided`."""
        model = guided(functools.partial(self.denoise, params), condition, negative, guidance_scale)
        return sample(model, latents, steps, return_intermediates=return_intermediates, on_step=on_step)

    def decode_latents(
        self, params: Tree, latents: Float[Array, "B h w C"], *, tile: int | None = None
    ) -> Float[Array, "B H W 3"]:
        """Return images in 0..1; `tile` as in `VAE.decode_latents`."""
        return self.vae.decode_latents(params["vae"], latents, tile=tile)

    def encode_image(self, params: Tree, image: Float[Array, "B H W 3"]) -> LatentDistribution:
        """Return the distribution of the latents that the UNet denoises, for images in 0..1."""
        return self.vae.encode_image(params["vae"], image)

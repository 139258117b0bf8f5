"""The unCLIP Stable Diffusion decoder: its parameters and the pure functions on them."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from seed_jax.errors import UserError
from seed_jax.models.clip.text import ClipText
from seed_jax.models.diffusion import unclip_conditioning
from seed_jax.models.diffusion.samplers import SamplerSteps, Trajectory, guided, sample
from seed_jax.models.diffusion.unclip_conditioning import UnclipCondition
from seed_jax.models.diffusion.unclip_config import UnclipConfig
from seed_jax.models.diffusion.unet import UNet
from seed_jax.models.diffusion.vae import VAE, LatentDistribution
from seed_jax.precision import Precision
from seed_jax.typing import Tree


@dataclasses.dataclass(frozen=True)
class Unclip:
    """Generate images from image embeddings: class labels, guided denoising, decoding.

    Every method takes the whole parameter tree {"unet", "vae", "text", "normalizer"}. Images and latents are channels
    last. The images of a batch are independent.

    Example:
        unclip = Unclip(UnclipConfig.tiny())
        params = sharding.unbox(unclip.init(jax.random.key(0)))
        labels = unclip.class_labels(params, embeddings, noise, jnp.zeros(len(embeddings), int))
        condition = UnclipCondition(unclip.encode_text(params, tokens), labels)
        trajectory = unclip.sample_latents(params, latents, condition, sampler_steps("pndm", unclip.config.noise, 20))
        pixels = unclip.decode_latents(params, trajectory.final)

    Attributes:
        config: sizes.
        precision: dtypes of the UNet and the text encoder.
        vae_precision: dtypes of the autoencoder.
        attention: implementation of `attend` for the large score matrices.
        remat: recompute the UNet's blocks in the backward pass.
    """

    config: UnclipConfig
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
        """Create random parameters with logical axis names; the normalizer starts as the identity."""
        unet_rng, vae_rng, text_rng = jax.random.split(rng, 3)
        width = self.config.embedding_width
        return {
            "unet": self.unet.init(unet_rng),
            "vae": self.vae.init(vae_rng),
            "text": self.text.init(text_rng, jnp.zeros((1, self.config.text.max_length), jnp.int32))["params"],
            "normalizer": {"mean": jnp.zeros(width), "std": jnp.ones(width)},
        }

    def encode_text(self, params: Tree, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Return the text states of tokenized prompts."""
        states = self.text.apply({"params": params["text"]}, tokens)
        assert isinstance(states, jax.Array)  # a tuple only with mutable collections
        return states

    def class_labels(
        self, params: Tree, embeddings: Float[Array, "B E"], noise: Float[Array, "B E"], level: Int[Array, " B"]
    ) -> Float[Array, "B L"]:
        """Return the class labels of image embeddings noised with `noise` at `level`.

        Raises:
            UserError: the embeddings do not have the width of this decoder's.
        """
        if embeddings.shape[-1] != self.config.embedding_width:
            raise UserError(
                f"The generation embeddings are {embeddings.shape[-1]} wide, but this decoder expects "
                f"{self.config.embedding_width}: use the decoder that belongs to the tokenizer."
            )
        return unclip_conditioning.class_labels(
            embeddings, noise, level, config=self.config.embedding_noise, **params["normalizer"]
        )

    def denoise(
        self, params: Tree, latents: Float[Array, "B h w C"], timesteps: Int[Array, " B"], condition: UnclipCondition
    ) -> Float[Array, "B h w C"]:
        """Return the UNet's prediction in float32: velocity or noise, as the config says."""
        return self.unet.apply(params["unet"], latents, timesteps, condition.text_states, condition.class_labels)

    def sample_latents(
        self,
        params: Tree,
        latents: Float[Array, "B h w C"],
        condition: UnclipCondition,
        steps: SamplerSteps,
        *,
        negative: UnclipCondition | None = None,
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

"""The unCLIP Stable Diffusion decoder: its parameters and the pure functions on them."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from seed_jax.errors import UserError
from seed_jax.models.diffusion import unclip_conditioning
from seed_jax.models.diffusion.latent_diffusion import LatentDiffusion
from seed_jax.models.diffusion.unclip_conditioning import UnclipCondition
from seed_jax.models.diffusion.unclip_config import UnclipConfig
from seed_jax.typing import Tree


class Unclip(LatentDiffusion):
    """Generate images from image embeddings: class labels, guided denoising, decoding.

    Example:
        unclip = Unclip(UnclipConfig.tiny())
        params = sharding.unbox(unclip.init(jax.random.key(0)))
        labels = unclip.class_labels(params, embeddings, noise, jnp.zeros(len(embeddings), int))
        condition = UnclipCondition(unclip.encode_text(params, tokens), labels)
        trajectory = unclip.sample_latents(params, latents, condition, sampler_steps("pndm", unclip.config.noise, 20))
        pixels = unclip.decode_latents(params, trajectory.final)

    Attributes: as of `LatentDiffusion`; the parameters have a fourth part, "normalizer".
    """

    config: UnclipConfig

    def init(self, rng: Key[Array, ""]) -> Tree:
        """Create random parameters with logical axis names; the normalizer starts as the identity."""
        width = self.config.embedding_width
        return {**super().init(rng), "normalizer": {"mean": jnp.zeros(width), "std": jnp.ones(width)}}

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
        """Return the UNet's prediction in float32: velocity or noise, according to the config."""
        return self.unet.apply(params["unet"], latents, timesteps, condition.text_states, condition.class_labels)

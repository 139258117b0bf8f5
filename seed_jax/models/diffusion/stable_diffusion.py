"""Stable Diffusion 1.4, SEED-1's decoder: generation embeddings take the place of a prompt's text states (spec G).

The safety checker of the release is not part of SEED and not implemented.
"""

import dataclasses

from jaxtyping import Array, Float, Int

from seed_jax.errors import UserError
from seed_jax.models.clip.text import ClipTextConfig, PromptTokens
from seed_jax.models.config_io import SerializableConfig
from seed_jax.models.diffusion.latent_diffusion import LatentDiffusion, check_parts
from seed_jax.models.diffusion.noise_schedule import NoiseScheduleConfig
from seed_jax.models.diffusion.unet import UNetConfig
from seed_jax.models.diffusion.vae import VAEConfig
from seed_jax.typing import Tree


@dataclasses.dataclass(frozen=True)
class StableDiffusionConfig(SerializableConfig):
    """Everything that determines the decoder's computation; the defaults are stable-diffusion-v1-4's.

    Attributes:
        noise: schedule of the latents.
        prompt: special tokens of the text encoder.
        sampler: default sampler of the checkpoint.
    """

    unet: UNetConfig = UNetConfig(
        sample_size=64, num_heads=(8, 8, 8, 8), text_width=768, class_width=None, linear_projection=False
    )
    vae: VAEConfig = VAEConfig(sample_size=512)
    text: ClipTextConfig = ClipTextConfig.vit_l()
    noise: NoiseScheduleConfig = NoiseScheduleConfig(prediction_type="epsilon")
    prompt: PromptTokens = PromptTokens(pad=49407)
    sampler: str = "pndm"

    def __post_init__(self):
        if self.unet.class_width is not None:
            raise UserError("StableDiffusionConfig: the UNet has class labels, so it is an unCLIP decoder's.")
        check_parts("StableDiffusionConfig", self.unet, self.vae, self.text)

    @property
    def embedding_shape(self) -> tuple[int, ...]:
        """Shape of an image's generation embedding: text states."""
        return self.text.max_length, self.text.hidden_size

    @property
    def image_size(self) -> int:
        """Side of the generated image in pixels."""
        return self.unet.sample_size * self.vae.factor

    @property
    def default_steps(self) -> int:
        """Sampler steps of the original."""
        return 50

    @property
    def default_guidance_scale(self) -> float:
        """Guidance scale of the original."""
        return 7.5

    @classmethod
    def full(cls) -> "StableDiffusionConfig":
        """Return the released sizes: 860 M (UNet) + 84 M (autoencoder) + 123 M (text) parameters, 512 pixels."""
        return cls()


class StableDiffusion(LatentDiffusion):
    """Generate images from text states, predicted from codes or computed from a prompt.

    Example:
        decoder = StableDiffusion(StableDiffusionConfig.full())
        negative = decoder.encode_text(params, empty_prompt)
        steps = sampler_steps("pndm", decoder.config.noise, 50)
        trajectory = decoder.sample_latents(params, latents, states, steps, negative=negative, guidance_scale=7.5)
        pixels = decoder.decode_latents(params, trajectory.final)
    """

    config: StableDiffusionConfig

    def denoise(
        self,
        params: Tree,
        latents: Float[Array, "B h w C"],
        timesteps: Int[Array, " B"],
        condition: Float[Array, "B T D"],
    ) -> Float[Array, "B h w C"]:
        return self.unet.apply(params["unet"], latents, timesteps, condition)

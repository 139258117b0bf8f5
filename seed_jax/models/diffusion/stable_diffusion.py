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

    @classmethod
    def tiny(cls, embedding_shape: tuple[int, int] = (77, 32)) -> "StableDiffusionConfig":
        """Return sizes that generate 64 x 64 pixels, and train, on a laptop's CPU."""
        length, width = embedding_shape
        return cls(
            unet=UNetConfig(
                sample_size=8, block_channels=(16, 32), cross_attention=(True, False), num_heads=(2, 4),
                layers_per_block=1, text_width=width, class_width=None, norm_groups=8, linear_projection=False,
            ),
            vae=VAEConfig(sample_size=64, block_channels=(8, 8, 16, 16), layers_per_block=1, norm_groups=4),
            text=ClipTextConfig(
                vocab_size=523, hidden_size=width, intermediate_size=2 * width, num_layers=2, num_heads=4,
                max_length=length, activation="quick_gelu",
            ),
            prompt=PromptTokens(bos=521, eos=522, pad=522),
        )  # fmt: skip

    @classmethod
    def small(cls, embedding_shape: tuple[int, int] = (77, 96)) -> "StableDiffusionConfig":
        """Return sizes that learn to generate the synthetic world, 48 x 48 pixels, on a laptop's CPU.

        All but the condition is as in `UnclipConfig.small`.
        """
        length, width = embedding_shape
        return cls(
            unet=UNetConfig(
                sample_size=12, in_channels=4, out_channels=4, block_channels=(48, 80, 80),
                cross_attention=(False, True, True), num_heads=(4, 4, 4), layers_per_block=2, text_width=width,
                class_width=None, norm_groups=8, linear_projection=False,
            ),
            vae=VAEConfig(
                sample_size=48, latent_channels=4, block_channels=(16, 32, 48), layers_per_block=1, norm_groups=4,
                scaling_factor=1.0,
            ),
            text=ClipTextConfig(
                vocab_size=514, hidden_size=width, intermediate_size=2 * width, num_layers=2, num_heads=4,
                max_length=length, activation="quick_gelu",
            ),
            prompt=PromptTokens(bos=512, eos=513, pad=513),
        )  # fmt: skip


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

"""Sizes of the unCLIP Stable Diffusion decoder; the defaults are stable-diffusion-2-1-unclip's (spec B.3, B.4)."""

import dataclasses

from seed_jax.errors import UserError
from seed_jax.models.clip.text import ClipTextConfig, PromptTokens
from seed_jax.models.config_io import SerializableConfig
from seed_jax.models.diffusion.latent_diffusion import check_parts
from seed_jax.models.diffusion.noise_schedule import NoiseScheduleConfig
from seed_jax.models.diffusion.unet import UNetConfig
from seed_jax.models.diffusion.vae import VAEConfig


@dataclasses.dataclass(frozen=True)
class UnclipConfig(SerializableConfig):
    """Everything that determines the decoder's computation.

    Attributes:
        noise: schedule of the latents.
        embedding_noise: schedule of the image embedding (spec B.2); only its betas matter.
        prompt: special tokens of the text encoder.
        sampler: default sampler of the checkpoint.
    """

    unet: UNetConfig = UNetConfig()
    vae: VAEConfig = VAEConfig()
    text: ClipTextConfig = ClipTextConfig()
    noise: NoiseScheduleConfig = NoiseScheduleConfig()
    embedding_noise: NoiseScheduleConfig = NoiseScheduleConfig(
        beta_schedule="squaredcos_cap_v2", beta_start=1e-4, beta_end=0.02, prediction_type="epsilon", steps_offset=0
    )
    prompt: PromptTokens = PromptTokens()
    sampler: str = "pndm"

    def __post_init__(self):
        if self.unet.class_width is None or self.unet.class_width % 4:
            raise UserError(
                f"UnclipConfig: unet.class_width {self.unet.class_width} must be twice an even embedding width."
            )
        check_parts("UnclipConfig", self.unet, self.vae, self.text)

    @property
    def class_width(self) -> int:
        """Width of the class labels: an image embedding and the embedding of its noise level."""
        assert self.unet.class_width is not None  # checked above
        return self.unet.class_width

    @property
    def embedding_width(self) -> int:
        """Width of the image embedding."""
        return self.class_width // 2

    @property
    def embedding_shape(self) -> tuple[int, ...]:
        """Shape of an image's generation embedding."""
        return (self.embedding_width,)

    @property
    def default_steps(self) -> int:
        """Sampler steps of the original."""
        return 20

    @property
    def default_guidance_scale(self) -> float:
        """Guidance scale of the original."""
        return 10.0

    @property
    def image_size(self) -> int:
        """Side of the generated image in pixels."""
        return self.unet.sample_size * self.vae.factor

    @classmethod
    def full(cls) -> "UnclipConfig":
        """Return the released sizes: 870 M (UNet) + 84 M (autoencoder) + 340 M (text) parameters, 768 pixels."""
        return cls()

    @classmethod
    def tiny(cls, embedding_width: int = 24) -> "UnclipConfig":
        """Return sizes that generate 64 x 64 pixels, and train, on a laptop's CPU."""
        return cls(
            unet=UNetConfig(
                sample_size=8, block_channels=(16, 32), cross_attention=(True, False), num_heads=(2, 4),
                layers_per_block=1, text_width=32, class_width=2 * embedding_width, norm_groups=8,
            ),
            vae=VAEConfig(sample_size=64, block_channels=(8, 8, 16, 16), layers_per_block=1, norm_groups=4),
            text=ClipTextConfig(vocab_size=523, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4),
            prompt=PromptTokens(bos=521, eos=522),
        )  # fmt: skip

    @classmethod
    def small(cls, embedding_width: int = 96) -> "UnclipConfig":
        """Return sizes that learn to generate the synthetic world, 48 x 48 pixels, on a laptop's CPU."""
        return cls(
            unet=UNetConfig(
                sample_size=12, in_channels=4, out_channels=4, block_channels=(48, 80, 80),
                # Attention in the middle block only: at 12 x 12 it takes as long as everything else, and the time is
                # better spent on convolutions.
                cross_attention=(False, False, False), num_heads=(4, 4, 4), layers_per_block=2, text_width=32,
                class_width=2 * embedding_width, norm_groups=8,
            ),
            vae=VAEConfig(
                sample_size=48, latent_channels=4, block_channels=(16, 32, 48), layers_per_block=1, norm_groups=4,
                scaling_factor=1.0,
            ),
            text=ClipTextConfig(
                vocab_size=8, hidden_size=32, intermediate_size=32, num_layers=1, num_heads=2, max_length=4
            ),
            prompt=PromptTokens(bos=1, eos=2),
        )  # fmt: skip

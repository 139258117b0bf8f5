"""Sizes of the unCLIP Stable Diffusion decoder; the defaults are stable-diffusion-2-1-unclip's (spec B.3, B.4)."""

import dataclasses
from collections.abc import Mapping

from seed_jax.errors import UserError
from seed_jax.models import config_io
from seed_jax.models.clip.text import ClipTextConfig


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Sizes of the denoising UNet; tuples run from the finest resolution to the coarsest."""

    sample_size: int = 96  # side of the latent
    in_channels: int = 4
    out_channels: int = 4
    block_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    cross_attention: tuple[bool, ...] = (True, True, True, False)  # which resolutions attend to the text
    num_heads: tuple[int, ...] = (5, 10, 20, 20)
    layers_per_block: int = 2
    transformer_layers: int = 1
    text_width: int = 1024
    class_width: int = 2048  # noised image embedding and sinusoid of its noise level, side by side
    norm_groups: int = 32
    linear_projection: bool = True
    upcast_attention: bool = False  # kept for export; the scores are float32 here in any case

    def __post_init__(self):
        levels = len(self.block_channels)
        for name in ("cross_attention", "num_heads"):
            if len(getattr(self, name)) != levels:
                raise UserError(f"UNetConfig: {name} has {len(getattr(self, name))} entries, block_channels {levels}.")
        for channels, heads in zip(self.block_channels, self.num_heads, strict=True):
            if channels % heads or channels % self.norm_groups:
                raise UserError(
                    f"UNetConfig: {channels} channels are not divisible by {heads} heads and {self.norm_groups} "
                    "norm groups."
                )
        if self.class_width % 4:
            raise UserError(f"UNetConfig: class_width {self.class_width} must be twice an even embedding width.")


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Sizes of the autoencoder between pixels and latents."""

    sample_size: int = 768
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_groups: int = 32
    scaling_factor: float = 0.18215

    @property
    def factor(self) -> int:
        """Return how many pixels a latent's side stands for."""
        return 2 ** (len(self.block_channels) - 1)


@dataclasses.dataclass(frozen=True)
class NoiseConfig:
    """A schedule of noise in training and how it is walked back (spec B.4)."""

    num_train_timesteps: int = 1000
    beta_schedule: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction_type: str = "v_prediction"
    timestep_spacing: str = "leading"
    steps_offset: int = 1
    set_alpha_to_one: bool = False


@dataclasses.dataclass(frozen=True)
class PromptTokens:
    """Ids that frame a prompt; enough to encode the empty one."""

    bos: int = 49406
    eos: int = 49407
    pad: int = 0  # "!", as in the Stable Diffusion 2 tokenizers


@dataclasses.dataclass(frozen=True)
class UnclipConfig:
    """Everything that fixes the decoder's computation."""

    unet: UNetConfig = UNetConfig()
    vae: VAEConfig = VAEConfig()
    text: ClipTextConfig = ClipTextConfig()
    noise: NoiseConfig = NoiseConfig()
    # Of the image embedding (spec B.2); only the schedule's alphas matter.
    embedding_noise: NoiseConfig = NoiseConfig(
        beta_schedule="squaredcos_cap_v2", beta_start=1e-4, beta_end=0.02, prediction_type="epsilon", steps_offset=0
    )
    prompt: PromptTokens = PromptTokens()
    sampler: str = "pndm"  # what the checkpoint names

    def __post_init__(self):
        if self.text.hidden_size != self.unet.text_width:
            raise UserError(
                f"UnclipConfig: the text encoder is {self.text.hidden_size} wide, the UNet expects "
                f"{self.unet.text_width}."
            )
        if self.vae.latent_channels != self.unet.in_channels:
            raise UserError(
                f"UnclipConfig: the autoencoder has {self.vae.latent_channels} latent channels, the UNet expects "
                f"{self.unet.in_channels}."
            )

    @property
    def embedding_width(self) -> int:
        return self.unet.class_width // 2

    @property
    def image_size(self) -> int:
        return self.unet.sample_size * self.vae.factor

    @classmethod
    def full(cls) -> "UnclipConfig":
        """Return the released sizes: 870 M (UNet) + 84 M (autoencoder) + 340 M (text) parameters, 768 pixels."""
        return cls()

    @classmethod
    def tiny(cls, embedding_width: int = 24) -> "UnclipConfig":
        """Return sizes that draw 64 pixels, and train, on a laptop's CPU."""
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
        """Return sizes that learn to draw the drawn world, 48 pixels, on a laptop's CPU."""
        return cls(
            unet=UNetConfig(
                sample_size=12, in_channels=4, out_channels=4, block_channels=(48, 80, 80),
                # Attention in the middle only: at 12 x 12 it takes as long as everything else, and convolutions draw
                # better for the time.
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

    def to_dict(self) -> dict:
        return config_io.to_dict(self)

    @classmethod
    def from_dict(cls, data: Mapping, where: str = "config") -> "UnclipConfig":
        """Build from what `to_dict` returned, also after a trip through JSON; every key must be there and no other."""
        return config_io.from_dict(cls, data, where)

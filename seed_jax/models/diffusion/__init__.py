"""Diffusion decoders: generation embeddings in, images out (spec B).

`latent_diffusion`, `unet`, `vae`, `noise_schedule`, `samplers` and `flax_blocks` are shared by all decoders; `unclip*`
is unCLIP Stable Diffusion 2.1 (SEED-2), `stable_diffusion` is Stable Diffusion 1.4 (SEED-1).
"""

from seed_jax.models.diffusion.samplers import SAMPLERS, SamplerSteps, sampler_steps
from seed_jax.models.diffusion.stable_diffusion import StableDiffusion, StableDiffusionConfig
from seed_jax.models.diffusion.unclip import Unclip
from seed_jax.models.diffusion.unclip_conditioning import UnclipCondition
from seed_jax.models.diffusion.unclip_config import UnclipConfig
from seed_jax.models.diffusion.vae import LatentDistribution

# The kind of a model directory (`checkpoint.kinds.ModelKind`) -> config class and decoder class.
DECODERS: dict[str, tuple[type[UnclipConfig] | type[StableDiffusionConfig], type[Unclip] | type[StableDiffusion]]] = {
    "unclip": (UnclipConfig, Unclip),
    "stable_diffusion": (StableDiffusionConfig, StableDiffusion),
}

__all__ = [
    "DECODERS",
    "SAMPLERS",
    "LatentDistribution",
    "SamplerSteps",
    "StableDiffusion",
    "StableDiffusionConfig",
    "Unclip",
    "UnclipCondition",
    "UnclipConfig",
    "sampler_steps",
]

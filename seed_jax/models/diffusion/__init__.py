"""Diffusion decoders: generation embeddings in, images out (spec B).

`unet`, `vae`, `noise_schedule`, `samplers` and `flax_blocks` are shared by all decoders; `unclip*` is unCLIP Stable
Diffusion 2.1.
"""

from seed_jax.models.diffusion.samplers import SAMPLERS, SamplerSteps, sampler_steps
from seed_jax.models.diffusion.unclip import Unclip
from seed_jax.models.diffusion.unclip_conditioning import UnclipCondition
from seed_jax.models.diffusion.unclip_config import UnclipConfig
from seed_jax.models.diffusion.vae import LatentDistribution

__all__ = [
    "SAMPLERS",
    "LatentDistribution",
    "SamplerSteps",
    "Unclip",
    "UnclipCondition",
    "UnclipConfig",
    "sampler_steps",
]

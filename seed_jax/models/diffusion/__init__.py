"""The unCLIP Stable Diffusion 2.1 decoder: generation embeddings in, pictures out (spec B)."""

from seed_jax.models.diffusion.samplers import SAMPLERS, Steps, plan
from seed_jax.models.diffusion.unclip import Condition, Unclip
from seed_jax.models.diffusion.unclip_config import UnclipConfig
from seed_jax.models.diffusion.vae import Moments

__all__ = ["SAMPLERS", "Condition", "Moments", "Steps", "Unclip", "UnclipConfig", "plan"]

"""The unCLIP Stable Diffusion 2.1 decoder: generation embeddings in, pictures out (spec B)."""

from seed_jax.models.unclip.config import UnclipConfig
from seed_jax.models.unclip.model import Condition, Unclip
from seed_jax.models.unclip.samplers import SAMPLERS, Steps, plan
from seed_jax.models.unclip.vae import Moments

__all__ = ["SAMPLERS", "Condition", "Moments", "Steps", "Unclip", "UnclipConfig", "plan"]

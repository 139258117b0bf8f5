"""Memory that programs need while they run: estimates from above of the largest arrays that exist at one time.

They count in float32: even with 16-bit weights, backends hold sums and softmaxes in it.
"""

import dataclasses

import numpy as np

from seed_jax.inference.requests import bucket
from seed_jax.models.attention import QUERY_BLOCK
from seed_jax.models.llama import LlamaConfig
from seed_jax.models.seed_tokenizer import SeedTokenizerConfig
from seed_jax.models.unclip import UnclipConfig
from seed_jax.precision import Precision


@dataclasses.dataclass(frozen=True)
class Workload:
    """The largest batch that is to be answered: prompts, beams of each (twice as many rows if guided), lengths."""

    prompts: int = 1
    beams: int = 1
    guided: bool = False
    prompt_length: int = 512
    new_tokens: int = 512

    @property
    def rows(self) -> int:
        return bucket(self.prompts, smallest=1) * self.beams * (2 if self.guided else 1)

    def slots(self, config: LlamaConfig) -> int:
        """Return the length of the cache."""
        longest = bucket(self.prompt_length, config.max_length) + bucket(self.new_tokens, config.max_length)
        return min(longest, config.max_length)


def cache_size(config: LlamaConfig, precision: Precision, workload: Workload) -> int:
    numbers = 2 * config.num_layers * config.num_kv_heads * config.head_size
    return workload.rows * workload.slots(config) * numbers * precision.compute_dtype.itemsize


def _unpacked(*kernel: int) -> int:
    """Return what a rounded kernel takes while it is multiplied by, where the product cannot unpack it on its way."""
    return 4 * int(np.prod(kernel))


def reading(config: LlamaConfig, work: Workload) -> int:
    rows = bucket(work.prompts, smallest=1) * (2 if work.guided else 1)
    length = bucket(work.prompt_length, config.max_length)
    scores = 3 * config.num_heads * min(length, QUERY_BLOCK) * length
    states = length * (3 * config.intermediate_size + 10 * config.hidden_size)
    copies = cache_size(config, Precision(), work) // 2  # of keys or of values, while they are laid out
    return 4 * rows * (scores + states) + copies + _unpacked(config.hidden_size, config.intermediate_size)


def generating(config: LlamaConfig, work: Workload) -> int:
    scores = 8 * config.vocab_size * (work.beams if work.beams > 1 else 1)
    states = 3 * config.intermediate_size + 10 * config.hidden_size + 3 * config.num_heads * work.slots(config)
    one_layer = 2 * work.slots(config) * config.num_kv_heads * config.head_size
    beams = cache_size(config, Precision(), work) if work.beams > 1 else 0  # the cache in its new order
    return (
        4 * work.rows * (scores + states + one_layer) + beams + _unpacked(config.hidden_size, config.intermediate_size)
    )


def encoding(config: SeedTokenizerConfig, pictures: int) -> int:
    vit = config.vit.blocks
    patches = (config.image_size // config.vit.patch_size) ** 2 + 1
    states = patches * (3 * vit.mlp_width + 10 * vit.width) + 3 * vit.heads * patches**2
    return 4 * max(pictures, 1) * states + _unpacked(vit.width, vit.mlp_width)


def drawing(config: UnclipConfig) -> int:
    """Return the larger of the autoencoder's last resolution and the guided UNet's first one, for one picture."""
    vae, unet = config.vae, config.unet
    pixels, latents = config.image_size**2, unet.sample_size**2
    decoding = pixels * 6 * vae.block_channels[min(1, len(vae.block_channels) - 1)]
    scores = 3 * unet.num_heads[0] * min(latents, QUERY_BLOCK) * latents
    denoising = 2 * (latents * 40 * unet.block_channels[0] + scores)
    return 4 * max(decoding, denoising)

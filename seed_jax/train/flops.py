"""Model FLOPs utilisation: one place for formulas and peaks.

Convention "causal": 6 FLOPs per token and matmul parameter (2 forward, 4 backward), the embedding look-up not counted
and the output head counted, plus 6 * layers * hidden * length for causal attention (half of the full square). Frozen
matrices have no weight gradient, so they count 4 instead of 6; recomputation under remat is never counted.
"""

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from seed_jax import accelerators
from seed_jax.models.diffusion import UnclipConfig
from seed_jax.models.tokenizer.image_text import ImageTextConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig


def transformer_flops_per_token(
    *, trained_matmul: int, frozen_matmul: int, layers: int, hidden: int, length: int
) -> float:
    """Return FLOPs of a training step per token (causal convention)."""
    return 6.0 * trained_matmul + 4.0 * frozen_matmul + 6.0 * layers * hidden * length


def device_peak(device: jax.Device) -> tuple[float, str]:
    """Return (FLOP/s, where the figure comes from); unknown devices are measured with a float32 matmul."""
    found = accelerators.of_device(device)
    if found and device.platform != "cpu":
        return found.peak, f"{found.kinds[0]} bfloat16 specification"
    return _measure_peak() / jax.local_device_count(), "measured float32 matmul"


def _measure_peak(size: int = 1024, repeats: int = 3) -> float:
    x = jnp.ones((size, size), jnp.float32)
    matmul = jax.jit(jnp.matmul)
    matmul(x, x).block_until_ready()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        matmul(x, x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(times)


DECODER_CONVENTION = (
    "6 FLOPs per trained kernel parameter and place it is applied to; attention scores and frozen models not"
)


def step_flops(params: Mapping[str, Any], config: UnclipConfig, trained: tuple[str, ...]) -> float:
    """Add up the kernels of the trained parts ("unet", "vae")."""
    places = {"unet": _unet_places, "vae": _vae_places}
    return 6.0 * sum(
        leaf.size * places[part](path, config)
        for part in trained
        for path, leaf in flatten_dict(params[part], sep="/").items()
        if path.endswith("kernel")
    )


def _unet_places(path: str, config: UnclipConfig) -> int:
    side, levels = config.unet.sample_size, len(config.unet.block_channels)
    if "embedding/" in path or "time_emb_proj" in path:
        return 1
    if re.search(r"attn2/to_[kv]/", path):
        return config.text.max_length
    return _side(path, side, levels) ** 2


def _vae_places(path: str, config: UnclipConfig) -> int:
    levels = len(config.vae.block_channels)
    coarse = config.unet.sample_size
    if path.startswith(("quant_conv", "post_quant_conv")):
        return coarse**2
    part, _, inner = path.partition("/")
    if inner.startswith(("conv_in", "conv_out")):
        fine = inner.startswith("conv_in") == (part == "encoder")
        return (config.image_size if fine else coarse) ** 2
    return _side(inner, config.image_size, levels) ** 2


def _side(path: str, side: int, levels: int) -> int:
    """Return the side of what a block's kernel is applied to (its output's, where it changes the resolution)."""
    if match := re.match(r"down_blocks_(\d+)/(downsamplers)?", path):
        return side >> (int(match[1]) + bool(match[2]))
    if match := re.match(r"up_blocks_(\d+)/(upsamplers)?", path):
        return side >> (levels - 1 - int(match[1]) - bool(match[2]))
    return side >> (levels - 1) if path.startswith("mid_block") else side


TOKENIZER_CONVENTION = (
    "6 FLOPs per trained and 2 per frozen matmul parameter and position, attention scores not counted"
)


def kernels_flops(
    params: Mapping[str, Any], positions: Callable[[tuple[str, ...]], int], trained: Callable[[tuple[str, ...]], bool]
) -> float:
    """Add up the kernels of a tree.

    Args:
        positions: how many positions of a picture (and its caption) a kernel is applied to.
    """
    flat = flatten_dict(params)
    return float(
        sum(
            (6 if trained(path) else 2) * leaf.size * positions(path)
            for path, leaf in flat.items()
            if path[-1] == "kernel"
        )
    )


def encoder_positions(sizes: ImageTextConfig | SeedTokenizerConfig, text_length: int) -> Callable[[tuple], int]:
    """Return path of a kernel -> number of positions of a picture and a caption that it is applied to."""
    queries, memory = sizes.qformer.num_queries, sizes.vit.num_tokens

    def positions(path: tuple[str, ...]) -> int:
        if "vit" in path:
            return memory
        if "reverse_qformer" in path:
            return 1 if "cross_attention" not in path or path[-2] in ("query", "out") else queries
        if "cross_attention" in path:
            return memory if path[-2] in ("key", "value") else queries
        if "self_attention" in path:
            return queries + text_length
        if "text_ffn" in path:
            return text_length
        return 1 if path[0] in ("vision_proj", "text_proj", "image_proj") else queries

    return positions

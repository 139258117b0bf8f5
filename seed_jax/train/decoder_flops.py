"""Model FLOPs of a decoder's training step, per picture: the UNet's and, where it trains, the autoencoder's."""

import re
from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict

from seed_jax.models.unclip import UnclipConfig

CONVENTION = "6 FLOPs per trained kernel parameter and place it is applied to; attention scores and frozen models not"


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

"""Model FLOPs of a training step, for the model FLOPs utilization (MFU).

Language models, convention "causal": 6 FLOPs per token and trained matmul parameter (2 forward, 4 backward) and 4 per
frozen one, which has no weight gradient; the output head counts, the embedding lookup does not; plus
6 * layers * hidden * length for causal attention (half of the full square). Recomputation under remat never counts.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from flax.traverse_util import flatten_dict

from seed_jax import accelerators
from seed_jax.models.diffusion import StableDiffusionConfig, UnclipConfig
from seed_jax.models.diffusion.vae import DECODER_PARAMS
from seed_jax.models.tokenizer.image_text import ImageTextConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig
from seed_jax.typing import ParamPath

LANGUAGE_CONVENTION = "6 FLOPs per trained and 4 per frozen matmul parameter and token, causal attention"
TOKENIZER_CONVENTION = "6 FLOPs per trained and 2 per frozen matmul parameter and position, without attention scores"
DecoderSizes = UnclipConfig | StableDiffusionConfig
DECODER_CONVENTION = "6 FLOPs per trained kernel parameter and position, without attention scores and frozen models"


def device_peak(device: Any) -> float | None:
    """Return the peak bfloat16 FLOP/s of a device, or None where it is not known (CPUs among others)."""
    accelerator = accelerators.for_device(device)
    return accelerator.peak_flops if accelerator and device.platform != "cpu" else None


def transformer_flops_per_token(
    *, trained_matmul: int, frozen_matmul: int, layers: int, hidden: int, length: int
) -> float:
    """Return FLOPs of a training step per token (causal convention).

    Args:
        trained_matmul: number of trained matmul parameters.
        frozen_matmul: number of frozen matmul parameters.
        layers: number of blocks.
        hidden: width of the residual stream.
        length: tokens of a sequence.
    """
    return 6.0 * trained_matmul + 4.0 * frozen_matmul + 6.0 * layers * hidden * length


def kernel_flops(
    params: Mapping[str, Any], positions: Callable[[ParamPath], int], is_trained: Callable[[ParamPath], bool]
) -> float:
    """Return FLOPs of a training step over the kernels of a tree (tokenizer convention).

    Args:
        params: arrays or their shapes.
        positions: path of a kernel -> positions of a sample that it is applied to.
        is_trained: whether the kernel at a path is trained.
    """
    flat: dict[ParamPath, Any] = flatten_dict(params)
    kernels = {path: leaf.size for path, leaf in flat.items() if path[-1] == "kernel"}
    return float(sum((6 if is_trained(path) else 2) * size * positions(path) for path, size in kernels.items()))


def encoder_positions(
    sizes: ImageTextConfig | SeedTokenizerConfig, text_length: int, *, text_states: int = 1
) -> Callable[[ParamPath], int]:
    """Return a function from a kernel's path to the positions of an image and a caption that it is applied to.

    Args:
        sizes: of the image-text model or the tokenizer.
        text_length: tokens of the caption.
        text_states: outputs of the Reverse Q-Former: 1 predicts an image embedding, more a text encoder's states.
    """
    queries, patches = sizes.qformer.num_queries, sizes.vit.num_tokens

    def positions(path: ParamPath) -> int:
        if "vit" in path:
            return patches
        if "reverse_qformer" in path:
            return queries if "cross_attention" in path and path[-2] in ("key", "value") else text_states
        if path[-2] == "proj" and "blocks" not in path:  # of the text states
            return text_states
        if "cross_attention" in path:
            return patches if path[-2] in ("key", "value") else queries
        if "self_attention" in path:
            return queries + text_length
        if "text_ffn" in path:
            return text_length
        return 1 if path[0] in ("vision_proj", "text_proj", "image_proj") else queries

    return positions


def decoder_flops(params: Mapping[str, Any], config: DecoderSizes, trained: tuple[str, ...]) -> float:
    """Return FLOPs of a training step per image over the kernels of the trained parts, as `model.train` names them."""
    positions = {"unet": _unet_positions, "vae": _vae_positions, "vae_decoder": _vae_positions}
    total = 0
    for part in trained:
        kernels: dict[str, Any] = flatten_dict(params[part.removesuffix("_decoder")], sep="/")
        if part == "vae_decoder":
            kernels = {path: leaf for path, leaf in kernels.items() if path.split("/")[0] in DECODER_PARAMS}
        total += sum(
            leaf.size * positions[part](path, config) for path, leaf in kernels.items() if path.endswith("kernel")
        )
    return 6.0 * total


def _unet_positions(path: str, config: DecoderSizes) -> int:
    if "embedding/" in path or "time_emb_proj" in path:
        return 1
    if re.search(r"attn2/to_[kv]/", path):
        return config.text.max_length
    return _resolution(path, config.unet.sample_size, len(config.unet.block_channels)) ** 2


def _vae_positions(path: str, config: DecoderSizes) -> int:
    latent_size = config.unet.sample_size
    if path.startswith(("quant_conv", "post_quant_conv")):
        return latent_size**2
    part, _, inner = path.partition("/")
    if inner.startswith(("conv_in", "conv_out")):
        at_pixels = inner.startswith("conv_in") == (part == "encoder")
        return (config.image_size if at_pixels else latent_size) ** 2
    return _resolution(inner, config.image_size, len(config.vae.block_channels)) ** 2


def _resolution(path: str, size: int, levels: int) -> int:
    """Return the side of the feature map that a block's kernel writes."""
    if match := re.match(r"down_blocks_(\d+)/(downsamplers)?", path):
        return size >> (int(match[1]) + bool(match[2]))
    if match := re.match(r"up_blocks_(\d+)/(upsamplers)?", path):
        return size >> (levels - 1 - int(match[1]) - bool(match[2]))
    return size >> (levels - 1) if path.startswith("mid_block") else size

"""Model FLOPs of the tokenizer's stages, per picture.

Every matmul kernel counts 2 FLOPs a parameter and position forward, and 4 more backward where it is trained; attention
scores are not counted. Frozen encoders have no backward pass at all: nothing before them is trained.
"""

from collections.abc import Callable, Mapping
from typing import Any

from flax.traverse_util import flatten_dict

from seed_jax.models.image_text import ImageTextConfig
from seed_jax.models.seed_tokenizer import SeedTokenizerConfig

CONVENTION = "6 FLOPs per trained and 2 per frozen matmul parameter and position, attention scores not counted"


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

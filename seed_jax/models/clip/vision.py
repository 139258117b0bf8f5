"""CLIP's vision towers: the ViT of this package at CLIP's settings; `Vit.embed` gives the image embedding."""

from seed_jax.models.tokenizer.vit import BlockConfig, VitConfig


def clip_vision_config(
    *,
    image_size: int = 224,
    patch_size: int = 14,
    width: int = 1280,
    depth: int = 32,
    heads: int = 16,
    mlp_width: int = 5120,
    projection: int = 1024,
    activation: str = "gelu",
    epsilon: float = 1e-5,
) -> VitConfig:
    """Return the sizes of a CLIP vision tower; the defaults are OpenCLIP ViT-H/14's, stage II's target (spec A.10)."""
    blocks = BlockConfig(width, depth, heads, mlp_width, epsilon, key_bias=True, activation=activation)
    return VitConfig(image_size, patch_size, blocks, patch_bias=False, pre_norm=True, projection=projection)

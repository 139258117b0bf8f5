"""Vision transformer: the architecture of EVA ViT-g, CLIP's vision towers and SEED's decoders (spec A.2, A.6)."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from seed_jax.errors import UserError
from seed_jax.models.nn.attention import attend
from seed_jax.models.nn.layers import ACTIVATIONS, Dense, LayerNorm, Mlp, align_last, param
from seed_jax.precision import Precision


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """Sizes of a stack of pre-norm blocks; the defaults are EVA ViT-g's."""

    width: int = 1408
    depth: int = 39  # EVA-g has 40 blocks; SEED drops the last
    heads: int = 16
    mlp_width: int = 6144  # int(1408 * 4.3637)
    epsilon: float = 1e-6
    key_bias: bool = False  # EVA learns a bias for queries and values only
    activation: str = "gelu"

    def __post_init__(self):
        if self.width % self.heads:
            raise UserError(f"A block's width must be divisible by its heads: found {self.width} and {self.heads}.")
        if self.activation not in ACTIVATIONS:
            raise UserError(f"Unknown activation {self.activation!r}: expected one of {', '.join(ACTIVATIONS)}.")


@dataclasses.dataclass(frozen=True)
class VitConfig:
    """Sizes of a vision transformer; the defaults are EVA ViT-g/14's, `clip` returns those of a CLIP vision tower."""

    image_size: int = 224
    patch_size: int = 14
    blocks: BlockConfig = BlockConfig()
    patch_bias: bool = True
    pre_norm: bool = False  # a LayerNorm between the position embeddings and the first block
    projection: int | None = None  # width of CLIP's image embedding: final norm of the class token, then a matrix

    def __post_init__(self):
        if self.image_size % self.patch_size:
            raise UserError(
                f"The image size must be a multiple of the patch size: found {self.image_size} and {self.patch_size}."
            )

    @property
    def has_eva_layout(self) -> bool:
        """Whether it has the layers of EVA, for which alone the official files of SEED have names."""
        return self.patch_bias and not self.pre_norm and not self.blocks.key_bias

    @property
    def grid(self) -> int:
        """Number of patches along a side."""
        return self.image_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Number of tokens: the class token and the patches."""
        return self.grid**2 + 1

    @classmethod
    def clip(
        cls,
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
    ) -> "VitConfig":
        """Return the sizes of a CLIP vision tower; the defaults are OpenCLIP ViT-H/14's, stage II's target (A.10)."""
        blocks = BlockConfig(width, depth, heads, mlp_width, epsilon, key_bias=True, activation=activation)
        return cls(image_size, patch_size, blocks, patch_bias=False, pre_norm=True, projection=projection)


class SelfAttention(nn.Module):
    """Bidirectional self-attention with a fused projection of queries, keys and values."""

    config: BlockConfig
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        width, heads, key_bias = self.config.width, self.config.heads, self.config.key_bias
        qkv = Dense(3 * width, ("embed", "heads"), use_bias=key_bias, precision=self.precision, name="qkv")(x)
        if not key_bias:
            zeros, dtype = nn.initializers.zeros, self.precision.param_dtype
            q_bias = param(self, "q_bias", zeros, (width,), ("heads",), dtype)
            v_bias = param(self, "v_bias", zeros, (width,), ("heads",), dtype)
            bias = jnp.concatenate([q_bias, jnp.zeros_like(q_bias), v_bias])
            qkv = qkv + align_last(bias.astype(qkv.dtype), qkv)
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, heads, width // heads), 2, 0)
        y = attend(q, k, v, precision=self.precision)
        return Dense(width, ("heads", "embed"), precision=self.precision, name="proj")(y.reshape(x.shape))


class Block(nn.Module):
    """Pre-norm transformer block as the body of a scan; sows its output as `hidden`."""

    config: BlockConfig
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], _=None) -> tuple[Float[Array, "B T D"], None]:
        config, precision = self.config, self.precision
        y = LayerNorm(config.epsilon, precision, name="norm1")(x)
        x = x + SelfAttention(config, precision, name="attn")(y)
        y = LayerNorm(config.epsilon, precision, name="norm2")(x)
        x = x + Mlp(config.mlp_width, config.width, ACTIVATIONS[config.activation], precision, name="mlp")(y)
        self.sow("intermediates", "hidden", x)
        return x, None


class Blocks(nn.Module):
    """A scan over `depth` blocks: every parameter is stacked along a leading axis `layers`.

    Attributes:
        remat: recompute a block's activations in the backward pass instead of saving them.
    """

    config: BlockConfig
    precision: Precision = Precision()
    remat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        scan = nn.scan(
            nn.remat(Block, prevent_cse=False) if self.remat else Block,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            length=self.config.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = scan(self.config, self.precision, name="layers")(x, None)
        return x


class PatchEmbed(nn.Module):
    """Project the image's patches in row-major order: a convolution whose stride is its kernel size."""

    config: VitConfig
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, image: Float[Array, "B H W 3"]) -> Float[Array, "B N D"]:
        size, grid, width = self.config.patch_size, self.config.grid, self.config.blocks.width
        normal, dtype = nn.initializers.normal(0.02), self.precision.param_dtype
        kernel = param(self, "kernel", normal, (size, size, 3, width), (None, None, None, "embed"), dtype)
        x = image.astype(self.precision.compute_dtype).reshape(-1, grid, size, grid, size, 3)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, grid * grid, size * size * 3)
        x = jnp.matmul(x, kernel.reshape(-1, width).astype(x.dtype), precision=self.precision.matmul)
        if self.config.patch_bias:
            bias = param(self, "bias", nn.initializers.zeros, (width,), ("embed",), dtype)
            x = x + align_last(bias.astype(x.dtype), x)
        self.sow("intermediates", "hidden", x)
        return x


class Vit(nn.Module):
    """Encode an image as one feature per token, the class token first; no norm after the last block.

    Attributes:
        remat: recompute a block's activations in the backward pass instead of saving them.
    """

    config: VitConfig
    precision: Precision = Precision()
    remat: bool = False

    def setup(self):
        config, precision = self.config, self.precision
        self.patch_embed = PatchEmbed(config, precision)
        normal, width, dtype = nn.initializers.normal(0.02), config.blocks.width, precision.param_dtype
        self.cls_token = param(self, "cls_token", normal, (width,), ("embed",), dtype)
        self.pos_embed = param(self, "pos_embed", normal, (config.num_tokens, width), (None, "embed"), dtype)
        self.blocks = Blocks(config.blocks, precision, self.remat)
        if config.pre_norm:
            self.pre_norm = LayerNorm(config.blocks.epsilon, precision)
        if config.projection is not None:
            self.final_norm = LayerNorm(config.blocks.epsilon, precision)
            self.head = Dense(config.projection, ("embed", None), use_bias=False, precision=precision)

    def __call__(self, image: Float[Array, "B H W 3"]) -> Float[Array, "B T D"]:
        """Return the residual stream after the last block; T = 1 + patches."""
        patches = self.patch_embed(image)
        cls_token = jnp.broadcast_to(self.cls_token.astype(patches.dtype), (len(patches), 1, patches.shape[-1]))
        x = jnp.concatenate([cls_token, patches], axis=1) + self.pos_embed.astype(patches.dtype)[None]
        if self.config.pre_norm:
            x = self.pre_norm(x)
        return self.blocks(x)

    def embed(self, image: Float[Array, "B H W 3"]) -> Float[Array, "B E"]:
        """Return CLIP's image embedding, not normalized; needs `projection`."""
        return self.head(self.final_norm(self(image)[:, 0]))

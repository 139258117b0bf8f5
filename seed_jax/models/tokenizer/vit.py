"""Vision transformer: EVA ViT-g, CLIP's vision towers and SEED's decoder blocks in their settings (spec A.2, A.6)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from seed_jax.errors import UserError
from seed_jax.models.nn.attention import attend
from seed_jax.models.nn.layers import Dense, LayerNorm, Mlp, align_last, gelu
from seed_jax.precision import Precision


def quick_gelu(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Apply x * sigmoid(1.702 x), the GELU of OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu}


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """Sizes of a stack of pre-LN blocks; the defaults are EVA ViT-g's."""

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
    """Sizes of a vision transformer; the defaults are EVA ViT-g/14's.

    A CLIP vision tower sets `pre_norm`, `patch_bias=False`, `projection`, and `key_bias` and `epsilon` of its blocks.
    """

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
    def grid(self) -> int:
        return self.image_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        return self.grid**2 + 1


class SelfAttention(nn.Module):
    """Attend over all tokens; queries, keys and values come out of one product."""

    config: BlockConfig
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        width, heads = self.config.width, self.config.heads
        full = self.config.key_bias
        qkv = Dense(3 * width, ("embed", "heads"), use_bias=full, precision=self.precision, name="qkv")(x)
        if not full:
            init = nn.with_logical_partitioning(nn.initializers.zeros, ("heads",))
            q_bias = self.param("q_bias", init, (width,), self.precision.param_dtype)
            v_bias = self.param("v_bias", init, (width,), self.precision.param_dtype)
            bias = jnp.concatenate([q_bias, jnp.zeros_like(q_bias), v_bias])
            qkv = qkv + align_last(bias.astype(qkv.dtype), qkv)
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, heads, width // heads), 2, 0)
        y = attend(q, k, v, precision=self.precision)
        return Dense(width, ("heads", "embed"), precision=self.precision, name="proj")(y.reshape(x.shape))


class Block(nn.Module):
    """Add attention, then an MLP, each on the normalised stream; sows `hidden`, the stream it leaves behind."""

    config: BlockConfig
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], _=None) -> tuple[Float[Array, "B T D"], None]:
        config, precision = self.config, self.precision
        norm1, norm2 = (LayerNorm(config.epsilon, precision, name=name) for name in ("norm1", "norm2"))
        activation = ACTIVATIONS[config.activation]
        x = x + SelfAttention(config, precision, name="attn")(norm1(x))
        x = x + Mlp(config.mlp_width, config.width, activation, precision, name="mlp")(norm2(x))
        self.sow("intermediates", "hidden", x)
        return x, None  # the pair nn.scan wants: carry and (no) output


class Blocks(nn.Module):
    """Run `depth` blocks as one scan: every parameter is stacked on a leading axis `layers`.

    Args:
        remat: recompute a block's activations in the backward pass instead of keeping them.
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
    """Cut the image into squares, row by row, and project each: a convolution whose stride is its size."""

    config: VitConfig
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, image: Float[Array, "B H W 3"]) -> Float[Array, "B N D"]:
        size, grid, width = self.config.patch_size, self.config.grid, self.config.blocks.width
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, None, None, "embed"))
        kernel = self.param("kernel", init, (size, size, 3, width), self.precision.param_dtype)
        x = image.astype(self.precision.compute_dtype).reshape(-1, grid, size, grid, size, 3)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, grid * grid, size * size * 3)
        x = jnp.matmul(x, kernel.reshape(-1, width).astype(x.dtype), precision=self.precision.matmul)
        if self.config.patch_bias:
            bias_init = nn.with_logical_partitioning(nn.initializers.zeros, ("embed",))
            bias = self.param("bias", bias_init, (width,), self.precision.param_dtype)
            x = x + align_last(bias.astype(x.dtype), x)
        self.sow("intermediates", "hidden", x)
        return x


class Vit(nn.Module):
    """Turn an image into one feature per patch, the class token first; no norm after the last block."""

    config: VitConfig
    precision: Precision = Precision()
    remat: bool = False

    def setup(self):
        config, precision = self.config, self.precision
        self.patch_embed = PatchEmbed(config, precision)
        init = nn.initializers.normal(0.02)
        shape = (config.num_tokens, config.blocks.width)
        class_init, position_init = (nn.with_logical_partitioning(init, axes) for axes in (("embed",), (None, "embed")))
        self.cls_token = self.param("cls_token", class_init, shape[1:], precision.param_dtype)
        self.pos_embed = self.param("pos_embed", position_init, shape, precision.param_dtype)
        self.blocks = Blocks(config.blocks, precision, self.remat)
        if config.pre_norm:
            self.pre_norm = LayerNorm(config.blocks.epsilon, precision)
        if config.projection is not None:
            self.final_norm = LayerNorm(config.blocks.epsilon, precision)
            self.head = Dense(config.projection, ("embed", None), use_bias=False, precision=precision)

    def __call__(self, image: Float[Array, "B H W 3"]) -> Float[Array, "B T D"]:
        """Return the residual stream after the last block: T = 1 + patches."""
        patches = self.patch_embed(image)
        cls_token = jnp.broadcast_to(self.cls_token.astype(patches.dtype), (len(patches), 1, patches.shape[-1]))
        x = jnp.concatenate([cls_token, patches], axis=1) + self.pos_embed.astype(patches.dtype)[None]
        if self.config.pre_norm:
            x = self.pre_norm(x)
        return self.blocks(x)

    def embed(self, image: Float[Array, "B H W 3"]) -> Float[Array, "B E"]:
        """Return CLIP's image embedding, not normalised; needs `projection`."""
        return self.head(self.final_norm(self(image)[:, 0]))

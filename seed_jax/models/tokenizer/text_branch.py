"""Predict Stable Diffusion 1's text states from codes: SEED-1's decoder, SEED-2's optional branch (A.8.2, A.10, G)."""

import dataclasses

import flax.linen as nn
from jaxtyping import Array, Float

from seed_jax.errors import UserError
from seed_jax.models.config_io import SerializableConfig
from seed_jax.models.nn.layers import Dense, param
from seed_jax.models.tokenizer.qformer import QFormer, QFormerConfig
from seed_jax.models.tokenizer.vit import BlockConfig, Blocks
from seed_jax.precision import Precision


@dataclasses.dataclass(frozen=True)
class TextBranchConfig(SerializableConfig):
    """Sizes of the branch; the defaults are those of the released `seed_quantizer.pt`."""

    codes_per_image: int = 32
    decoder: BlockConfig = BlockConfig(width=768, depth=4, heads=12, mlp_width=3072, key_bias=True)
    reverse: QFormerConfig = QFormerConfig(num_queries=77, causal=False, depth=4, memory_width=768)
    state_width: int = 768  # of CLIP ViT-L/14's text states

    def __post_init__(self):
        reverse, width = self.reverse, self.decoder.width
        if (reverse.width, reverse.memory_width) != (width, width):
            raise UserError(
                f"The text branch's reverse.width and reverse.memory_width are {reverse.width} and "
                f"{reverse.memory_width}, expected its decoder's width {width}."
            )


class TextBranch(nn.Module):
    """Predict one state per position of a text encoder from the decoded codes (`SeedTokenizer.decode_codes`).

    Attributes:
        remat: recompute activations in the backward pass.
    """

    config: TextBranchConfig
    precision: Precision = Precision()
    remat: bool = False

    @nn.compact
    def __call__(self, up: Float[Array, "B Q D"], *, deterministic: bool = True) -> Float[Array, "B T E"]:
        config, precision = self.config, self.precision
        shape = (config.codes_per_image, config.decoder.width)
        normal = nn.initializers.normal(0.02)
        pos_embed = param(self, "pos_embed", normal, shape, (None, "embed"), precision.param_dtype)
        x = Blocks(config.decoder, precision, self.remat, name="blocks")(up + pos_embed.astype(up.dtype)[None])
        reverse = QFormer(config.reverse, precision, self.remat, name="reverse_qformer")
        x = reverse.encode_image(x, deterministic=deterministic)
        return Dense(config.state_width, ("embed", None), precision=precision, name="proj")(x)

"""Image-text model of the tokenizer's stage I: one Q-Former reads pictures with queries, and captions (spec A.9)."""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from seed_jax.errors import UserError
from seed_jax.models import config_io
from seed_jax.models.nn.layers import Dense, LayerNorm
from seed_jax.models.tokenizer.qformer import QFormer, QFormerConfig
from seed_jax.models.tokenizer.vit import Vit, VitConfig
from seed_jax.precision import Precision

BERT_WORDS = 30523  # bert-base-uncased and the added [DEC]
FIRST_TEMPERATURE = 0.07


@dataclasses.dataclass(frozen=True)
class ImageTextConfig:
    """Sizes of the image-text model; the defaults are those that SEED's tokenizer was trained with."""

    vit: VitConfig = VitConfig()
    qformer: QFormerConfig = QFormerConfig(vocab_size=BERT_WORDS)
    joint_width: int = 256  # of the space in which pictures and texts are compared
    ln_vision_epsilon: float = 1e-5

    def __post_init__(self):
        if not self.qformer.vocab_size:
            raise UserError("An image-text model needs a Q-Former with a text side: set qformer.vocab_size.")
        if self.qformer.memory_width != self.vit.blocks.width:
            raise UserError(
                f"qformer.memory_width is {self.qformer.memory_width}, but the ViT's width is {self.vit.blocks.width}."
            )

    def to_dict(self) -> dict:
        return config_io.to_dict(self)

    @classmethod
    def from_dict(cls, data: Mapping, where: str = "config") -> "ImageTextConfig":
        return config_io.from_dict(cls, data, where)


@flax.struct.dataclass
class ImageTextFeatures:
    """Unit vectors of a batch of pairs; products divided by `temperature` are logits."""

    image: Float[Array, "B E"]
    text: Float[Array, "B E"]
    temperature: Float[Array, ""]


def unit(x: Float[Array, "*B E"]) -> Float[Array, "*B E"]:
    """Scale to length 1 in float32."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class ImageText(nn.Module):
    """Compare pictures and texts by the last query and the first word, [CLS].

    `vit`, `ln_vision` and `qformer` are named as in `SeedTokenizer`, which takes them over for stage II.

    Args:
        remat: recompute activations in the backward pass.
    """

    config: ImageTextConfig
    precision: Precision = Precision()
    remat: bool = False

    def setup(self):
        config, precision = self.config, self.precision
        self.vit = Vit(config.vit, precision, self.remat)
        self.ln_vision = LayerNorm(config.ln_vision_epsilon, precision)
        self.qformer = QFormer(config.qformer, precision, self.remat)
        self.vision_proj = Dense(config.joint_width, ("embed", None), precision=precision)
        self.text_proj = Dense(config.joint_width, ("embed", None), precision=precision)
        init = nn.with_logical_partitioning(nn.initializers.constant(FIRST_TEMPERATURE), ())
        self.temperature = self.param("temperature", init, (), jnp.float32)

    def __call__(
        self,
        image: Float[Array, "B H W 3"],
        text: Int[Array, "B T"],
        text_mask: Bool[Array, "B T"] | None = None,
        *,
        deterministic: bool = True,
    ) -> ImageTextFeatures:
        """Embed pairs of normalised pictures and framed texts ([CLS] ... [SEP], padding where the mask is False)."""
        states = self.embeddings(image, deterministic=deterministic)
        words = self.embed_text(text, text_mask, deterministic=deterministic)
        return ImageTextFeatures(self.project(states), words, self.temperature)

    def embeddings(self, image: Float[Array, "B H W 3"], *, deterministic: bool = True) -> Float[Array, "B Q D"]:
        """Return the causal embeddings, from which stage II makes codes."""
        return self.qformer(self.ln_vision(self.vit(image)), deterministic=deterministic).queries

    def project(self, states: Float[Array, "B Q D"]) -> Float[Array, "B E"]:
        """Return the unit vector of pictures, given causal embeddings or their reconstruction from codes."""
        return unit(self.vision_proj(states[:, -1]))

    def embed_text(
        self, text: Int[Array, "B T"], text_mask: Bool[Array, "B T"] | None = None, *, deterministic: bool = True
    ) -> Float[Array, "B E"]:
        """Return the unit vector of texts."""
        states = self.qformer(text=text, text_mask=text_mask, deterministic=deterministic).text
        return unit(self.text_proj(states[:, 0]))

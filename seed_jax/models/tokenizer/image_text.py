"""Image-text model of the tokenizer's stage I: one Q-Former encodes images with queries, and captions (spec A.9)."""

import dataclasses

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from seed_jax.errors import UserError
from seed_jax.models.config_io import SerializableConfig
from seed_jax.models.nn.layers import Dense, LayerNorm, param
from seed_jax.models.tokenizer.qformer import QFormer, QFormerConfig
from seed_jax.models.tokenizer.vit import Vit, VitConfig
from seed_jax.precision import Precision

BERT_VOCAB_SIZE = 30523  # bert-base-uncased and the added [DEC]
INITIAL_TEMPERATURE = 0.07


@dataclasses.dataclass(frozen=True)
class ImageTextConfig(SerializableConfig):
    """Sizes of the image-text model; the defaults are those with which SEED's tokenizer was trained."""

    vit: VitConfig = VitConfig()
    qformer: QFormerConfig = QFormerConfig(vocab_size=BERT_VOCAB_SIZE)
    joint_width: int = 256  # of the joint embedding space of images and texts
    ln_vision_epsilon: float = 1e-5

    def __post_init__(self):
        if not self.qformer.vocab_size:
            raise UserError("An image-text model needs a Q-Former with a text side: set qformer.vocab_size.")
        if self.qformer.memory_width != self.vit.blocks.width:
            raise UserError(
                f"qformer.memory_width is {self.qformer.memory_width}, expected the ViT's width "
                f"{self.vit.blocks.width}."
            )


@flax.struct.dataclass
class ImageTextFeatures:
    """Unit vectors of a batch of pairs; their products divided by `temperature` are the logits."""

    image: Float[Array, "B E"]
    text: Float[Array, "B E"]
    temperature: Float[Array, ""]


def unit(x: Float[Array, "*B E"]) -> Float[Array, "*B E"]:
    """Normalize to L2 norm 1 in float32."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class ImageText(nn.Module):
    """Compare images and texts by the output of the last query and of the first text token, [CLS].

    `vit`, `ln_vision` and `qformer` have the same names as in `SeedTokenizer`, which stage II initializes from them.

    Attributes:
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
        constant = nn.initializers.constant(INITIAL_TEMPERATURE)
        self.temperature = param(self, "temperature", constant, (), (), jnp.dtype(jnp.float32))

    def __call__(
        self,
        image: Float[Array, "B H W 3"],
        text: Int[Array, "B T"],
        text_mask: Bool[Array, "B T"] | None = None,
        *,
        deterministic: bool = True,
    ) -> ImageTextFeatures:
        """Embed pairs.

        Args:
            image: normalized images (`seed_jax.images`).
            text: token ids [CLS] ... [SEP] and padding.
            text_mask: False for padding; None if there is none.
            deterministic: no dropout; otherwise the rng `dropout` is needed.
        """
        embeddings = self.embeddings(image, deterministic=deterministic)
        text_features = self.embed_text(text, text_mask, deterministic=deterministic)
        return ImageTextFeatures(self.project(embeddings), text_features, self.temperature)

    def embeddings(self, image: Float[Array, "B H W 3"], *, deterministic: bool = True) -> Float[Array, "B Q D"]:
        """Return the causal embeddings, which stage II quantizes."""
        return self.qformer.encode_image(self.ln_vision(self.vit(image)), deterministic=deterministic)

    def project(self, embeddings: Float[Array, "B Q D"]) -> Float[Array, "B E"]:
        """Return the images' unit vectors, given causal embeddings or their reconstruction from codes."""
        return unit(self.vision_proj(embeddings[:, -1]))

    def embed_text(
        self, text: Int[Array, "B T"], text_mask: Bool[Array, "B T"] | None = None, *, deterministic: bool = True
    ) -> Float[Array, "B E"]:
        """Return the texts' unit vectors; arguments as in `__call__`."""
        return unit(self.text_proj(self.qformer.encode_text(text, text_mask, deterministic=deterministic)[:, 0]))

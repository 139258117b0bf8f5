"""A vision tower with a Q-Former that learns to read attributes: the teacher of worlds with known content."""

import dataclasses

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from seed_jax.models.nn.layers import Dense, LayerNorm
from seed_jax.models.tokenizer.config import SeedTokenizerConfig
from seed_jax.models.tokenizer.qformer import QFormer
from seed_jax.models.tokenizer.vit import Vit
from seed_jax.precision import Precision

Attributes = tuple[tuple[str, int], ...]
"""(name, number of classes) of each attribute."""

# Standard deviation of the noise added before the heads, relative to the vector's root mean square. Without it a head
# can read faint features, which later stages, trained with squared errors or on codes, lose.
EMBEDDING_NOISE = 0.4
QUERY_NOISE = 1.0


@flax.struct.dataclass
class AttributeLogits:
    """Logits of attribute classes.

    Attributes:
        embedding: per attribute, read from the image embedding.
        queries: per query, over the classes of all attributes, concatenated.
        patches: per patch attribute, read from each patch.
    """

    embedding: tuple[Float[Array, "B _"], ...]
    queries: Float[Array, "B Q C"]
    patches: tuple[Float[Array, "B N _"], ...]


class AttributeReader(nn.Module):
    """Predict attributes with linear heads, which are discarded after training, from three representations.

    The patch features stand for EVA's part at full size, the image embedding for CLIP's (so that it is worth generating
    from), and the causal queries for BLIP-2's; query i predicts attribute i modulo their number. With an RNG stream
    "noise", the heads of embedding and queries read noisy inputs.

    Attributes:
        config: sizes of the tokenizer that starts from vision tower and Q-Former.
        attributes: of the image.
        patch_attributes: of each patch.
        precision: dtypes.
    """

    config: SeedTokenizerConfig
    attributes: Attributes
    patch_attributes: Attributes
    precision: Precision = Precision()

    def setup(self):
        config, precision = self.config, self.precision
        self.vit = Vit(dataclasses.replace(config.vit, projection=config.embedding_width), precision)
        self.ln_vision = LayerNorm(config.ln_vision_epsilon, precision)
        self.qformer = QFormer(config.qformer, precision)
        num_classes = sum(classes for _, classes in self.attributes)
        num_patch_classes = sum(classes for _, classes in self.patch_attributes)
        self.patch_heads = Dense(num_patch_classes, ("embed", None), precision=precision)
        self.embedding_heads = Dense(num_classes, ("embed", None), precision=precision)
        # All queries share one head, so a query must also say which attribute it holds. With a head per query, the red
        # of the first object could look like that of the second, both would get the same code, and a reader of the
        # codes would have to count positions.
        self.query_heads = Dense(num_classes, ("embed", None), precision=precision)

    def __call__(self, image: Float[Array, "B H W 3"]) -> AttributeLogits:
        """Return the logits for normalized images."""
        states = self.vit(image)
        embedding = self.vit.head(self.vit.final_norm(states[:, 0]))
        normed = self.ln_vision(states)
        queries = self.qformer.encode_image(normed)
        embedding_logits = self.embedding_heads(self.add_noise(embedding, EMBEDDING_NOISE))
        query_logits = self.query_heads(self.add_noise(queries, QUERY_NOISE))
        patch_logits = self.patch_heads(normed[:, 1:])
        return AttributeLogits(
            embedding=_split(embedding_logits, self.attributes),
            queries=query_logits.astype(jnp.float32),
            patches=_split(patch_logits, self.patch_attributes),
        )

    def add_noise(self, vectors: Float[Array, "*S E"], ratio: float) -> Float[Array, "*S E"]:
        """Add Gaussian noise of `ratio` times each vector's root mean square; without an RNG "noise" add none."""
        if not self.has_rng("noise"):
            return vectors
        scale = ratio * jnp.sqrt(jnp.square(vectors).mean(-1, keepdims=True))
        return vectors + scale * jax.random.normal(self.make_rng("noise"), vectors.shape, vectors.dtype)


def _split(logits: Float[Array, "*S C"], attributes: Attributes) -> tuple[Float[Array, "*S _"], ...]:
    """Split concatenated logits by attribute, in float32."""
    ends = [sum(classes for _, classes in attributes[: i + 1]) for i in range(len(attributes) - 1)]
    return tuple(jnp.split(logits.astype(jnp.float32), ends, axis=-1))

"""A vision tower and a Q-Former that are taught to read attributes: teachers for worlds whose truth is known."""

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

# Noise beside which attributes must be read, as shares of a vector's root mean square. Without it a head can read what
# is faint, and whoever is taught with squared errors or codes afterwards loses it.
EMBEDDING_NOISE, QUERY_NOISE = 0.4, 1.0


@flax.struct.dataclass
class Read:
    """Logits of every attribute, as the image embedding and the queries have them, and of what each patch shows.

    A query's are of all classes of all attributes, one attribute after the other.
    """

    from_embedding: tuple[Float[Array, "B _"], ...]
    from_queries: Float[Array, "B Q C"]
    from_patches: tuple[Float[Array, "B N _"], ...]


class AttributeReader(nn.Module):
    """Read every attribute several times, with linear heads that are thrown away afterwards.

    From the patches' features (the part that EVA has at full size), from the image embedding, which is thereby worth
    drawing from (CLIP's part), and from the causal queries, query i attribute i and round again (BLIP-2's part). Where
    there is a random stream "noise", embedding and queries are read through it.

    Args:
        attributes: (kind, number of classes).
        patch_attributes: the same of what a patch shows.
    """

    config: SeedTokenizerConfig
    attributes: tuple[tuple[str, int], ...]
    patch_attributes: tuple[tuple[str, int], ...]
    precision: Precision = Precision()

    def setup(self):
        config, precision = self.config, self.precision
        self.vit = Vit(dataclasses.replace(config.vit, projection=config.embedding_width), precision)
        self.ln_vision = LayerNorm(config.ln_vision_epsilon, precision)
        self.qformer = QFormer(config.qformer, precision)
        classes = sum(count for _, count in self.attributes)
        shown = sum(count for _, count in self.patch_attributes)
        self.patch_heads = Dense(shown, ("embed", None), precision=precision)
        self.embedding_heads = Dense(classes, ("embed", None), precision=precision)
        # One for all: a query must say which attribute it tells as well. With a head for each, the first thing's red
        # may look like the second's, both become one code, and who reads codes has to count places.
        self.query_heads = Dense(classes, ("embed", None), precision=precision)

    def __call__(self, image: Float[Array, "B H W 3"]) -> Read:
        """Read normalised pictures."""
        states = self.vit(image)
        embedding = self.vit.head(self.vit.final_norm(states[:, 0]))
        first = _parted(self.embedding_heads(self._noisy(embedding, EMBEDDING_NOISE)), self.attributes)
        normed = self.ln_vision(states)
        patches = _parted(self.patch_heads(normed[:, 1:]), self.patch_attributes)
        queries = self._noisy(self.qformer(normed).queries, QUERY_NOISE)
        return Read(first, self.query_heads(queries).astype(jnp.float32), patches)

    def _noisy(self, vectors: Float[Array, "*S E"], share: float) -> Float[Array, "*S E"]:
        if not self.has_rng("noise"):
            return vectors
        size = share * jnp.sqrt(jnp.square(vectors).mean(-1, keepdims=True))
        return vectors + size * jax.random.normal(self.make_rng("noise"), vectors.shape, vectors.dtype)


def _parted(logits: Float[Array, "*S C"], attributes: tuple[tuple[str, int], ...]) -> tuple[Float[Array, "*S _"], ...]:
    ends = [sum(count for _, count in attributes[: i + 1]) for i in range(len(attributes) - 1)]
    return tuple(jnp.split(logits.astype(jnp.float32), ends, axis=-1))

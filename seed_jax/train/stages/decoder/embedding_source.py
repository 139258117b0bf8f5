"""Where a decoder's embeddings come from while it trains: the 32 codes of a tokenizer, or CLIP itself."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float, Key

from seed_jax import sharding
from seed_jax.checkpoint import model_dir
from seed_jax.convert.tokenizer import clip
from seed_jax.errors import UserError
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizer, SeedTokenizerConfig
from seed_jax.models.tokenizer.vit import Vit
from seed_jax.precision import Precision
from seed_jax.train.stages import warm_start

Tree = dict[str, Any]
KIND = "seed_tokenizer"
UNTRAINED = "untrained"


@dataclasses.dataclass(frozen=True, eq=False)
class EmbeddingSource:
    """A frozen model from pictures to embeddings.

    Attributes:
        where: its model directory, workdir or folder of Hugging Face files; "untrained" for random weights.
    """

    model: SeedTokenizer | Vit
    where: str

    @property
    def image_size(self) -> int:
        return self.model.config.image_size

    @property
    def width(self) -> int:
        config = self.model.config
        return config.embedding_width if isinstance(config, SeedTokenizerConfig) else config.projection

    def abstract(self) -> Tree:
        """Return boxed shapes."""
        image = jnp.zeros((1, self.image_size, self.image_size, 3))
        method = None if isinstance(self.model, SeedTokenizer) else "embed"
        return jax.eval_shape(lambda key: self.model.init(key, image, method=method)["params"], jax.random.key(0))

    def init(self, key: Key[Array, ""], cut: Tree) -> Tree:
        """Return weights, read from files or random."""
        image = jnp.zeros((1, self.image_size, self.image_size, 3))
        if self.where == UNTRAINED:
            fresh = jax.jit(lambda key: sharding.unbox(self.model.init(key, image)["params"]), out_shardings=cut)
            return fresh(key)
        if isinstance(self.model, Vit):
            return jax.tree.map(jax.device_put, clip.import_vision(self.where)[1], cut)
        stored = warm_start.load_collections(self.where, KIND)["params"]
        model_dir.check_tree(stored, sharding.unbox(self.abstract()), self.where)
        return jax.tree.map(lambda leaf, to: jax.device_put(leaf[...], to), stored, cut)

    def embed(self, params: Tree, image: Float[Array, "B S S 3"]) -> Float[Array, "B E"]:
        """Return embeddings in float32, from which nothing is learnt about the model itself."""
        if isinstance(self.model, Vit):
            found = self.model.apply({"params": params}, image, method="embed")
        else:
            codes = self.model.apply({"params": params}, image, method="encode").codes
            found = self.model.apply({"params": params}, codes, method="embed_codes")
        return jax.lax.stop_gradient(found.astype(jnp.float32))


def make_source(config: ml_collections.ConfigDict) -> EmbeddingSource:
    """Read the sizes of the model that `config.source` names."""
    tokenizer, vision = config.source.tokenizer, config.source.vision
    if bool(tokenizer) == bool(vision):
        raise UserError(
            f"source.tokenizer is {tokenizer!r} and source.vision {vision!r}: name one, the image tokenizer whose "
            "codes are drawn from, or a CLIP vision tower."
        )
    precision = Precision("float32", config.precision.compute)
    if vision:
        return EmbeddingSource(Vit(clip.vision_config(vision), precision), vision)
    if tokenizer == UNTRAINED:
        logging.info("source.tokenizer is untrained: its embeddings say little about a picture.")
        return EmbeddingSource(SeedTokenizer(SeedTokenizerConfig.tiny(), precision), UNTRAINED)
    folder, stored = model_dir.read_config(Path(tokenizer), KIND)
    sizes = SeedTokenizerConfig.from_dict(stored["sizes"], str(folder / model_dir.CONFIG))
    return EmbeddingSource(SeedTokenizer(sizes, precision), tokenizer)

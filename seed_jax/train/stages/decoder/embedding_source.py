"""The frozen model that makes the embeddings a decoder is trained on: a tokenizer's 32 codes, or CLIP itself."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from seed_jax import images, sharding
from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.convert.tokenizer import clip
from seed_jax.errors import UserError
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizer, SeedTokenizerConfig
from seed_jax.models.tokenizer.vit import Vit, VitConfig
from seed_jax.precision import Precision
from seed_jax.train.config.decoder import EmbeddingSourceConfig
from seed_jax.train.stages import warm_start
from seed_jax.typing import Tree

UNTRAINED = "untrained"


@dataclasses.dataclass(frozen=True, eq=False)
class EmbeddingSource:
    """A frozen model from images to embeddings.

    Attributes:
        model: the model.
        path: its model directory, workdir or Hugging Face directory; "untrained" for random weights.
    """

    model: SeedTokenizer | Vit
    path: str

    @property
    def image_size(self) -> int:
        return self.model.config.image_size

    @property
    def embedding_shape(self) -> tuple[int, ...]:
        """Shape of an image's embedding."""
        config = self.model.config
        if isinstance(config, SeedTokenizerConfig):
            return config.embedding_shape
        if config.projection is None:
            raise UserError(f"The vision tower {self.path} has no projection, whose output the decoder is trained on.")
        return (config.projection,)

    def abstract(self) -> Tree:
        """Return boxed shapes of the weights."""
        image = jnp.zeros((1, self.image_size, self.image_size, 3))
        method = None if isinstance(self.model, SeedTokenizer) else "embed"
        return jax.eval_shape(lambda: self.model.init(jax.random.key(0), image, method=method)["params"])

    def init(self, key: Key[Array, ""], shardings: Tree) -> Tree:
        """Return weights, read from files or random."""
        image = jnp.zeros((1, self.image_size, self.image_size, 3))
        if self.path == UNTRAINED:
            init = sharding.jit_init(
                lambda key: sharding.unbox(self.model.init(key, image)["params"]), out_shardings=shardings
            )
            return init(key)
        if isinstance(self.model, Vit):
            return jax.tree.map(jax.device_put, clip.import_vision(self.path)[1], shardings)
        stored = warm_start.open_collections(self.path, ModelKind.IMAGE_TOKENIZER)["params"]
        model_dir.check_tree(stored, sharding.unbox(self.abstract()), self.path)
        return jax.tree.map(lambda leaf, target: jax.device_put(leaf[...], target), stored, shardings)

    def embed(self, params: Tree, image: Float[Array, "B S S 3"]) -> Float[Array, "B ..."]:
        """Return embeddings in float32, without gradient."""
        embeddings: Any
        if isinstance(self.model, Vit):
            embeddings = self.model.apply({"params": params}, image, method="embed")
        else:
            encoded: Any = self.model.apply({"params": params}, image, method="encode")
            embeddings = self.model.apply({"params": params}, encoded.codes, method="embed_codes")
        return jax.lax.stop_gradient(embeddings.astype(jnp.float32))

    def features(self, params: Tree, image: Float[Array, "B H W 3"]) -> Float[Array, "B T D"]:
        """Return what a vision tower makes of an image in 0..1, token by token, each with mean 0 and variance 1."""
        assert isinstance(self.model, Vit)  # the config says so
        size = self.image_size
        image = jax.image.resize(image, (len(image), size, size, 3), "bicubic")
        states: Any = self.model.apply({"params": params}, images.normalize(image * 255))
        return jax.nn.standardize(states.astype(jnp.float32))


def make_source(config: EmbeddingSourceConfig, precision: Precision, *, text_states: bool = False) -> EmbeddingSource:
    """Return the model that `config` names; the released architecture where its files are absent, as in a plan.

    Args:
        config: the model.
        precision: dtypes.
        text_states: whether an absent or untrained tokenizer is SEED-1's.
    """
    if config.vision:
        sizes = clip.vision_config(config.vision) if Path(config.vision).exists() else VitConfig.clip()
        return EmbeddingSource(Vit(sizes, precision), config.vision)
    head = "text_features" if text_states else "mlp"
    if config.tokenizer == UNTRAINED:
        logging.info("source.tokenizer is untrained: its embeddings say little about an image.")
        return EmbeddingSource(SeedTokenizer(SeedTokenizerConfig.tiny(head), precision), UNTRAINED)
    if not Path(config.tokenizer).exists():
        return EmbeddingSource(SeedTokenizer(SeedTokenizerConfig.full(head), precision), config.tokenizer)
    folder, stored = model_dir.read_config(Path(config.tokenizer), ModelKind.IMAGE_TOKENIZER)
    sizes = SeedTokenizerConfig.from_dict(stored["sizes"], str(folder / model_dir.CONFIG))
    return EmbeddingSource(SeedTokenizer(sizes, precision), config.tokenizer)


def check_exists(config: EmbeddingSourceConfig) -> None:
    """Raise UserError if the model's files are absent."""
    for option in ("tokenizer", "vision"):
        path = getattr(config, option)
        if path and path != UNTRAINED and not Path(path).exists():
            raise UserError(
                f"source.{option} {path} does not exist: get official weights with `seed-jax fetch` and `seed-jax "
                "import tokenizer`, or name the workdir of configs/tokenizer_codebook.py."
            )

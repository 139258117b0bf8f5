"""The frozen CLIP models whose outputs stage II learns to estimate (spec A.10)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float, Key

from seed_jax import sharding
from seed_jax.convert.tokenizer import clip
from seed_jax.data.text.clip import ClipVocabulary
from seed_jax.errors import UserError
from seed_jax.models.clip.text import ClipText, ClipTextConfig
from seed_jax.models.clip.vision import clip_vision_config
from seed_jax.models.tokenizer.vit import Vit
from seed_jax.precision import Precision

Tree = dict[str, Any]
GIVEN, UNTRAINED = "given", "untrained"


@dataclasses.dataclass(frozen=True, eq=False)
class Teachers:
    """The models, without their weights, and where these come from.

    Attributes:
        vision: None where the records bring the image embeddings.
        text: None without the text branch.
        sources: name -> folder of Hugging Face files, or "untrained".
    """

    vision: Vit | None
    text: ClipText | None
    text_vocabulary: ClipVocabulary | None
    sources: Mapping[str, str]

    def abstract(self) -> Tree:
        """Return boxed shapes."""
        return jax.eval_shape(self._init, jax.random.key(0))

    def init(self, key: Key[Array, ""], cut: Tree) -> Tree:
        """Return weights, read from files or random."""
        readers = {"vision": clip.import_vision, "text": clip.import_text}
        weights = {}
        for name, source in self.sources.items():
            if source == UNTRAINED:
                random = lambda key, name=name: sharding.unbox(self._init(key)[name])  # noqa: E731
                weights[name] = jax.jit(random, out_shardings=cut[name])(key)
            else:
                weights[name] = jax.tree.map(jax.device_put, readers[name](source)[1], cut[name])
        return weights

    def _init(self, key: Key[Array, ""]) -> Tree:
        found = {}
        if self.vision is not None:
            size = self.vision.config.image_size
            found["vision"] = self.vision.init(key, jnp.zeros((1, size, size, 3)), method="embed")["params"]
        if self.text is not None:
            found["text"] = self.text.init(key, jnp.zeros((1, 2), jnp.int32))["params"]
        return found

    def image_target(
        self, weights: Tree, image: Float[Array, "B H W 3"], batch: Mapping[str, Array]
    ) -> Float[Array, "B E"]:
        """Return CLIP's image embedding, not normalised."""
        if self.vision is None:
            return batch["image_embedding"]
        return jax.lax.stop_gradient(self.vision.apply({"params": weights["vision"]}, image, method="embed"))

    def text_target(self, weights: Tree, batch: Mapping[str, Array]) -> Float[Array, "B T F"] | None:
        """Return the text encoder's states after its final norm."""
        if self.text is None:
            return None
        return jax.lax.stop_gradient(self.text.apply({"params": weights["text"]}, batch["clip_text"]))


def make_teachers(config: ml_collections.ConfigDict, image_size: int, embedding_width: int) -> Teachers:
    """Read the sizes of the models that `config.teacher` names.

    Args:
        embedding_width: of the tokenizer's estimate of the image embedding.
    """
    precision = Precision("float32", config.precision.compute)
    vision = _vision(config.teacher.vision, image_size, embedding_width, precision)
    sources = {} if vision is None else {"vision": config.teacher.vision}
    text = vocabulary = None
    if config.model.text_branch:
        text, vocabulary = _text(config, precision)
        sources["text"] = config.teacher.text
    return Teachers(vision, text, vocabulary, sources)


def _vision(source: str, image_size: int, embedding_width: int, precision: Precision) -> Vit | None:
    if source == GIVEN:
        return None
    if not source:
        raise UserError(
            f"teacher.vision is empty: name the folder of CLIP ViT-H/14's Hugging Face files, or {GIVEN!r} where the "
            "records hold image embeddings."
        )
    if source == UNTRAINED:
        sizes = clip_vision_config(
            image_size=image_size, width=64, depth=2, heads=4, mlp_width=128, projection=embedding_width
        )
    else:
        sizes = clip.vision_config(source)
    if (sizes.image_size, sizes.projection) != (image_size, embedding_width):
        raise UserError(
            f"The teacher {source} takes pictures of {sizes.image_size} px and gives {sizes.projection} numbers; the "
            f"tokenizer has {image_size} px and embedding_width {embedding_width}: they must be equal."
        )
    return Vit(sizes, precision)


def _text(config: ml_collections.ConfigDict, precision: Precision) -> tuple[ClipText, ClipVocabulary]:
    source, directory = config.teacher.text, config.teacher.text_vocabulary
    if not source or not directory:
        raise UserError(
            "model.text_branch needs teacher.text and teacher.text_vocabulary: the folders text_encoder and tokenizer "
            "of Stable Diffusion 1."
        )
    vocabulary = ClipVocabulary.load(directory)
    if source != UNTRAINED:
        return ClipText(clip.text_config(source), precision), vocabulary
    sizes = ClipTextConfig(
        vocab_size=max(vocabulary.ids.values()) + 1,
        hidden_size=64,
        intermediate_size=128,
        num_layers=2,
        num_heads=4,
        max_length=vocabulary.max_length,
    )
    return ClipText(sizes, precision), vocabulary

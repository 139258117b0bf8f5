"""The frozen CLIP models whose outputs stage II learns to predict (spec A.10)."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from seed_jax import sharding
from seed_jax.convert.tokenizer import clip
from seed_jax.data.text.clip import ClipVocabulary
from seed_jax.errors import UserError
from seed_jax.models.clip.text import ClipText, ClipTextConfig
from seed_jax.models.tokenizer.vit import Vit, VitConfig
from seed_jax.precision import Precision
from seed_jax.train.config.tokenizer import TeacherConfig
from seed_jax.typing import Tree

GIVEN, UNTRAINED = "given", "untrained"


@dataclasses.dataclass(frozen=True, eq=False)
class Teachers:
    """The models, without their weights, and where these come from.

    Attributes:
        vision: None where the records carry the image embeddings.
        text: None without the text branch.
        text_vocabulary: None without the text branch.
        sources: name -> Hugging Face directory, or "untrained".
    """

    vision: Vit | None
    text: ClipText | None
    text_vocabulary: ClipVocabulary | None
    sources: Mapping[str, str]

    def abstract(self) -> Tree:
        """Return boxed shapes of the weights."""
        return jax.eval_shape(lambda: self._init(jax.random.key(0)))

    def init(self, key: Key[Array, ""], shardings: Tree) -> Tree:
        """Return weights, read from files or random."""
        readers = {"vision": clip.import_vision, "text": clip.import_text}
        weights = {}
        for name, source in self.sources.items():
            if source == UNTRAINED:
                init = sharding.jit_init(lambda key: sharding.unbox(self._init(key)), out_shardings=shardings)
                weights[name] = init(key)[name]
            else:
                weights[name] = jax.tree.map(jax.device_put, readers[name](source)[1], shardings[name])
        return weights

    def _init(self, key: Key[Array, ""]) -> Tree:
        weights = {}
        if self.vision is not None:
            size = self.vision.config.image_size
            weights["vision"] = self.vision.init(key, jnp.zeros((1, size, size, 3)), method="embed")["params"]
        if self.text is not None:
            weights["text"] = self.text.init(key, jnp.zeros((1, 2), jnp.int32))["params"]
        return weights

    def image_target(
        self, weights: Tree, image: Float[Array, "B H W 3"], batch: Mapping[str, Array]
    ) -> Float[Array, "B E"]:
        """Return CLIP's image embedding, not normalized."""
        if self.vision is None:
            return batch["image_embedding"]
        embedding: Any = self.vision.apply({"params": weights["vision"]}, image, method="embed")
        return jax.lax.stop_gradient(embedding)

    def text_target(self, weights: Tree, batch: Mapping[str, Array]) -> Float[Array, "B T F"] | None:
        """Return the text encoder's states after its final norm."""
        if self.text is None:
            return None
        states: Any = self.text.apply({"params": weights["text"]}, batch["clip_text"])
        return jax.lax.stop_gradient(states)


def make_teachers(
    config: TeacherConfig, *, with_text: bool, image_size: int, embedding_width: int, precision: Precision
) -> Teachers:
    """Return the models that `config` names; CLIP's usual architectures where their files are absent, as in a plan.

    Args:
        config: the models' directories.
        with_text: whether the text branch is trained.
        image_size: side of the tokenizer's input in pixels.
        embedding_width: width of the tokenizer's generation embedding.
        precision: dtypes.
    """
    vision = _vision(config.vision, image_size, embedding_width, precision)
    sources = {} if vision is None else {"vision": config.vision}
    if not with_text:
        return Teachers(vision, None, None, sources)
    text, vocabulary = _text(config, precision)
    return Teachers(vision, text, vocabulary, {**sources, "text": config.text})


def _vision(source: str, image_size: int, embedding_width: int, precision: Precision) -> Vit | None:
    if source == GIVEN:
        return None
    if source == UNTRAINED:
        sizes = VitConfig.clip(
            image_size=image_size, width=64, depth=2, heads=4, mlp_width=128, projection=embedding_width
        )
    elif Path(source).exists():
        sizes = clip.vision_config(source)
    else:
        sizes = VitConfig.clip()
    if (sizes.image_size, sizes.projection) != (image_size, embedding_width):
        raise UserError(
            f"The teacher {source} takes images of {sizes.image_size} px and gives embeddings of width "
            f"{sizes.projection}; the tokenizer has {image_size} px and embedding_width {embedding_width}: they must "
            "be equal."
        )
    return Vit(sizes, precision)


def _text(config: TeacherConfig, precision: Precision) -> tuple[ClipText, ClipVocabulary | None]:
    vocabulary = ClipVocabulary.load(config.text_vocabulary) if Path(config.text_vocabulary).exists() else None
    if config.text != UNTRAINED:
        sizes = clip.text_config(config.text) if Path(config.text).exists() else ClipTextConfig()
        return ClipText(sizes, precision), vocabulary
    if vocabulary is None:
        raise UserError(f"teacher.text_vocabulary {config.text_vocabulary} does not exist.")
    sizes = ClipTextConfig(
        vocab_size=max(vocabulary.ids.values()) + 1,
        hidden_size=64,
        intermediate_size=128,
        num_layers=2,
        num_heads=4,
        max_length=vocabulary.max_length,
    )
    return ClipText(sizes, precision), vocabulary

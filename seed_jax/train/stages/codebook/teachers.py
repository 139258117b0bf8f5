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
        vision: None where the records carry the image embeddings, or none are needed (SEED-1).
        text: None without text states to predict.
        text_vocabulary: None without `text`, or where its files are absent, as in a plan.
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
    ) -> Float[Array, "B E"] | None:
        """Return CLIP's image embedding, not normalized; None for a tokenizer that predicts text states."""
        if self.vision is None:
            return batch.get("image_embedding")
        embedding: Any = self.vision.apply({"params": weights["vision"]}, image, method="embed")
        return jax.lax.stop_gradient(embedding)

    def text_target(self, weights: Tree, batch: Mapping[str, Array]) -> Float[Array, "B T F"] | None:
        """Return the text encoder's states after its final norm."""
        if self.text is None:
            return None
        states: Any = self.text.apply({"params": weights["text"]}, batch["clip_text"])
        return jax.lax.stop_gradient(states)


def make_teachers(
    config: TeacherConfig,
    *,
    image_size: int,
    image_embedding_width: int | None,
    text_states: tuple[int, int] | None,
    precision: Precision,
) -> Teachers:
    """Return the models that `config` names; CLIP's usual architectures where their files are absent, as in a plan.

    Args:
        config: the models' directories.
        image_size: side of the tokenizer's input in pixels.
        image_embedding_width: width of the image embedding to predict; None if none is.
        text_states: number and width of the text states to predict; None if none are.
        precision: dtypes.

    Raises:
        UserError: a model's outputs do not have the shape of the tokenizer's predictions.
    """
    vision = None
    if image_embedding_width is not None:
        vision = _vision(config.vision, image_size, image_embedding_width, precision)
    sources = {} if vision is None else {"vision": config.vision}
    if text_states is None:
        return Teachers(vision, None, None, sources)
    text, vocabulary = _text(config, text_states, precision)
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


def _text(
    config: TeacherConfig, states: tuple[int, int], precision: Precision
) -> tuple[ClipText, ClipVocabulary | None]:
    source, vocabulary = config.text_vocabulary, None
    if source and Path(source).exists():
        vocabulary = ClipVocabulary.load(source)
    if config.text == UNTRAINED:
        if source and vocabulary is None:
            raise UserError(f"teacher.text_vocabulary {source} does not exist.")
        vocabulary = vocabulary or ClipVocabulary.of_bytes(states[0])
        sizes = ClipTextConfig(
            vocab_size=max(vocabulary.ids.values()) + 1,
            hidden_size=states[1],
            intermediate_size=2 * states[1],
            num_layers=2,
            num_heads=4,
            max_length=vocabulary.max_length,
        )
    else:
        sizes = clip.text_config(config.text) if Path(config.text).exists() else ClipTextConfig.vit_l()
    if (sizes.max_length, sizes.hidden_size) != states:
        raise UserError(
            f"The text encoder {config.text} gives {sizes.max_length} states of width {sizes.hidden_size}; the "
            f"tokenizer predicts {states[0]} of width {states[1]}: they must be equal. SEED-1 takes that of Stable "
            "Diffusion 1, CLIP ViT-L/14."
        )
    return ClipText(sizes, precision), vocabulary

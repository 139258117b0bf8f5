"""The stage `world_text`: train the text encoder whose states SEED-1's codes predict, as CLIP trained its own.

Captions are matched with the image embeddings of the frozen vision tower. The workdir is a CLIP text encoder for
`teacher.text`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from seed_jax import images, sharding
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.convert.tokenizer import clip
from seed_jax.data.batches.pairs import image_and_captions
from seed_jax.data.shards.records import Record
from seed_jax.data.text.clip import ClipVocabulary
from seed_jax.files import AnyPath
from seed_jax.losses.tokenizer import contrastive_loss
from seed_jax.models.clip.text import ClipText, ClipTextConfig
from seed_jax.models.tokenizer.vit import Vit
from seed_jax.precision import Precision
from seed_jax.recipes.quickstart.config import TextTeacherConfig
from seed_jax.train import flops
from seed_jax.train.stage import Batches, LossOutput, Stage
from seed_jax.train.stages.pair_data import image_batches, mixture_components
from seed_jax.typing import ParamPath, Tree

HEADS, VISION = "heads", "vision"  # collections: the discarded projection, and the frozen vision tower
TEMPERATURE = 0.07


@dataclasses.dataclass(frozen=True)
class CaptionReader:
    """Turn a captioned image into a row: `image` uint8 [S, S, 3], `tokens` int32 [T].

    Attributes:
        image_size: height and width in pixels.
        vocabulary: of the captions.
    """

    image_size: int
    vocabulary: ClipVocabulary

    def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        image, captions = image_and_captions(record)
        pixels = images.resize(images.load(image), self.image_size, "bicubic")
        caption = captions[int(rng.integers(len(captions)))]
        return {"image": pixels, "tokens": np.array(self.vocabulary.encode(caption), np.int32)}

    def describe(self) -> dict[str, Any]:
        return {"image_size": self.image_size, "text_length": self.vocabulary.max_length}


class TextTeacherStage(Stage[TextTeacherConfig]):
    """Train a text encoder to match captions with their images."""

    config_class = TextTeacherConfig
    kind = ModelKind.CLIP_TEXT

    def __init__(self, config: TextTeacherConfig):
        super().__init__(config)
        options, precision = config.model, Precision("float32", config.precision.compute)
        self.vocabulary = ClipVocabulary.load(config.data.vocabulary)
        self.vision = Vit(clip.vision_config(options.vision), precision)
        self.sizes = ClipTextConfig(
            vocab_size=max(self.vocabulary.ids.values()) + 1,
            hidden_size=options.width,
            intermediate_size=2 * options.width,
            num_layers=options.layers,
            num_heads=options.heads,
            max_length=self.vocabulary.max_length,
            activation="quick_gelu",
        )
        self.text = ClipText(self.sizes, precision)

    @property
    def batch_size(self) -> int:
        return self.config.data.batch_size

    def abstract_variables(self) -> Tree:
        return jax.eval_shape(self._init, jax.random.key(0))

    def _init(self, key: Key[Array, ""]) -> Tree:
        size, (key_text, key_head, key_vision) = self.vision.config.image_size, jax.random.split(key, 3)
        vision = self.vision.init(key_vision, jnp.zeros((1, size, size, 3)), method="embed")["params"]
        shape = (self.sizes.hidden_size, self.vision.config.projection or self.sizes.hidden_size)
        return {
            "params": self.text.init(key_text, jnp.zeros((1, 2), jnp.int32))["params"],
            HEADS: {"proj": {"kernel": shape[0] ** -0.5 * jax.random.normal(key_head, shape)}},
            VISION: vision,
        }

    def is_trainable(self, path: ParamPath) -> bool:
        return path[0] != VISION

    def loss(self, variables: Tree, batch: Mapping[str, Array], key: Key[Array, ""]) -> LossOutput:
        """Contrast the states at the end of the captions with the images' embeddings."""
        embeddings: Any = self.vision.apply(
            {"params": variables[VISION]}, images.normalize(batch["image"]), method="embed"
        )
        states: Any = self.text.apply({"params": variables["params"]}, batch["tokens"])
        end = (batch["tokens"] == self.vocabulary.ids[self.vocabulary.eos]).argmax(1)
        last = jnp.take_along_axis(states, end[:, None, None], axis=1)[:, 0]
        texts = jnp.matmul(last.astype(jnp.float32), variables[HEADS]["proj"]["kernel"])
        output = contrastive_loss(
            _unit(jax.lax.stop_gradient(embeddings)), _unit(texts), jnp.float32(TEMPERATURE), through_gather=True
        )
        return LossOutput(output.total, {"t2i_accuracy": output.text_to_image_accuracy})

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        size = self.vision.config.image_size
        return {
            "image": jax.ShapeDtypeStruct((size, size, 3), np.uint8),
            "tokens": jax.ShapeDtypeStruct((self.vocabulary.max_length,), np.int32),
        }

    def flops_per_unit(self) -> float:
        params = sharding.unbox(self.abstract_variables())["params"]
        return flops.kernel_flops(params, lambda path: self.vocabulary.max_length, self.is_trainable)

    @property
    def flops_convention(self) -> str:
        return f"{flops.TOKENIZER_CONVENTION}; the text encoder alone"

    def prepare(self, workdir: AnyPath) -> None:
        del workdir  # vocabulary and vision tower were read by the constructor

    def init_variables(self, key: Key[Array, ""], shardings: Tree) -> Tree:
        own = {name: tree for name, tree in shardings.items() if name != VISION}

        def init(key: Key[Array, ""]) -> Tree:
            variables = sharding.unbox(self._init(key))
            return {name: variables[name] for name in own}

        vision = clip.import_vision(self.config.model.vision)[1]
        return {
            **sharding.jit_init(init, out_shardings=own)(key),
            VISION: jax.tree.map(jax.device_put, vision, shardings[VISION]),
        }

    def batches(self, local_indices: list[int]) -> Batches:
        data = self.config.data
        reader = CaptionReader(self.vision.config.image_size, self.vocabulary)
        return image_batches(data, mixture_components(data), reader, self.config.seed, local_indices)

    def model_config(self) -> dict[str, Any]:
        return {"sizes": dataclasses.asdict(self.sizes)}

    def model_files(self) -> dict[str, Path]:
        names = ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")
        return {name: Path(self.config.data.vocabulary) / name for name in names}


def _unit(x: Array) -> Array:
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

"""The stage `image_text`: stage I from scratch, where no pretrained vision transformer and no CLIP exist.

The causal Q-Former learns as in the stage `qformer`, and the vision transformer with it. A linear head on the class
token learns the same matching: with it, the vision transformer is the CLIP vision tower whose embeddings stage II
predicts. The workdir is one of stage I for `init_from.model`; `export_vision` writes the tower for `teacher.vision`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from seed_jax import images, sharding
from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.losses.next_token import WeightedSum
from seed_jax.losses.tokenizer import contrastive_loss
from seed_jax.models.nn.layers import Dense, LayerNorm
from seed_jax.models.tokenizer.image_text import ImageText, ImageTextConfig, ImageTextFeatures, unit
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig
from seed_jax.precision import Precision
from seed_jax.recipes.emoji.config import ImageTextConfig as ImageTextStageConfig
from seed_jax.train.stage import LossOutput
from seed_jax.train.stages.qformer import QFormerStage
from seed_jax.typing import ParamPath, Tree

TOWER = "tower"  # collection of the class token's heads
_HEADS = ("final_norm", "head", "text_head")


class ImageTextTower(ImageText):
    """An image-text model whose vision transformer is a CLIP vision tower, too.

    Attributes:
        embedding_width: of the image embedding.
    """

    embedding_width: int = 0

    def setup(self):
        super().setup()
        self.final_norm = LayerNorm(self.config.vit.blocks.epsilon, self.precision)
        self.head = Dense(self.embedding_width, ("embed", None), use_bias=False, precision=self.precision)
        self.text_head = Dense(self.embedding_width, ("embed", None), use_bias=False, precision=self.precision)

    def pairs(
        self,
        image: Float[Array, "B H W 3"],
        text: Int[Array, "B T"],
        text_mask: Bool[Array, "B T"] | None = None,
        *,
        deterministic: bool = True,
    ) -> tuple[ImageTextFeatures, ImageTextFeatures]:
        """Embed pairs by the last query, and by the class token."""
        states = self.vit(image)
        queries = self.qformer.encode_image(self.ln_vision(states), deterministic=deterministic)
        text_state = self.qformer.encode_text(text, text_mask, deterministic=deterministic)[:, 0]
        image_embedding = unit(self.head(self.final_norm(states[:, 0])))
        return (
            ImageTextFeatures(self.project(queries), unit(self.text_proj(text_state)), self.temperature),
            ImageTextFeatures(image_embedding, unit(self.text_head(text_state)), self.temperature),
        )


class ImageTextStage(QFormerStage):
    """Contrastive training of the causal Q-Former and the vision transformer that it reads."""

    config_class = ImageTextStageConfig

    def _set_model(self, vocab_size: int) -> None:
        options = self.config.model
        named = getattr(SeedTokenizerConfig, options.config)()
        # A CLIP tower's layers, so that the same network can be the teacher of stage II.
        blocks = dataclasses.replace(named.vit.blocks, key_bias=True, epsilon=1e-5)
        vit = dataclasses.replace(named.vit, blocks=blocks, patch_bias=False, pre_norm=True)
        qformer = dataclasses.replace(named.qformer, vocab_size=vocab_size, dropout=options.dropout)
        sizes = ImageTextConfig(vit, qformer, options.joint_width, named.ln_vision_epsilon)
        precision = Precision("float32", self.config.precision.compute)
        self.model = ImageTextTower(sizes, precision, options.remat, named.embedding_width)

    def _init(self, key: Key[Array, ""]) -> Tree:
        """Return boxed variables: `params` of the image-text model, `tower` of the class token's heads."""
        size = self.model.config.vit.image_size
        image, text = jnp.zeros((1, size, size, 3)), jnp.zeros((1, 4), jnp.int32)
        params = dict(self.model.init(key, image, text, method="pairs")["params"])
        return {TOWER: {name: params.pop(name) for name in _HEADS}, "params": params}

    def abstract_variables(self) -> Tree:
        return jax.eval_shape(self._init, jax.random.key(0))

    def init_variables(self, key: Key[Array, ""], shardings: Tree) -> Tree:
        return sharding.jit_init(lambda key: sharding.unbox(self._init(key)), out_shardings=shardings)(key)

    def is_trainable(self, path: ParamPath) -> bool:
        return True

    def _loss(self, variables: Tree, batch: Mapping[str, Array], rngs: dict[str, Array] | None) -> LossOutput:
        features: Any = self.model.apply(
            {"params": {**variables["params"], **variables[TOWER]}},
            images.normalize(batch["image"]),
            batch["text"],
            batch["text_mask"],
            deterministic=rngs is None,
            rngs=rngs,
            method="pairs",
        )
        through_gather = self.config.model.itc_gradient == "through_gather"
        query, tower = (
            contrastive_loss(part.image, part.text, part.temperature, through_gather=through_gather)
            for part in features
        )
        metrics = {
            "i2t_accuracy": query.image_to_text_accuracy,
            "t2i_accuracy": query.text_to_image_accuracy,
            "tower_i2t_accuracy": tower.image_to_text_accuracy,
            "temperature": WeightedSum(jnp.float32(features[0].temperature), jnp.ones(())),
        }
        return LossOutput(query.total + tower.total, metrics)


def export_vision(workdir: Path, out: Path) -> None:
    """Write the CLIP vision tower of a finished stage as a model directory, unless there is one."""
    if out.is_dir():
        return
    loaded = model_dir.load(workdir, ModelKind.QFORMER)
    sizes = ImageTextConfig.from_dict(loaded.config["sizes"], str(workdir))
    heads = loaded.variables[TOWER]
    params = {**loaded.variables["params"]["vit"], "final_norm": heads["final_norm"], "head": heads["head"]}
    vit = dataclasses.replace(sizes.vit, projection=int(heads["head"]["kernel"].shape[-1]))
    model_dir.save(out, ModelKind.CLIP_VISION, {"sizes": dataclasses.asdict(vit)}, params)

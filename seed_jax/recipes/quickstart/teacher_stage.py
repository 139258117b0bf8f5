"""The stage `world_teacher`: train the encoders that the synthetic world's tokenizer starts from.

It stands for EVA, CLIP and BLIP-2, which learned from hundreds of millions of captioned images; here the known content
of the scenes supervises. The workdir is a CLIP vision tower for `teacher.vision` and `source.vision`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from seed_jax import images, sharding
from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.data.batches.record_stream import MixtureComponent
from seed_jax.data.shards.records import Record
from seed_jax.data.world.labels import (
    ATTRIBUTES,
    PATCH_ATTRIBUTES,
    mask_color_labels,
    patch_labels,
    scene_labels,
)
from seed_jax.data.world.recoloring import recolor
from seed_jax.data.world.tasks import scene_from_dict
from seed_jax.errors import UserError
from seed_jax.files import AnyPath
from seed_jax.losses.next_token import WeightedSum
from seed_jax.models.tokenizer.config import SeedTokenizerConfig
from seed_jax.precision import Precision
from seed_jax.recipes.quickstart.attribute_reader import AttributeReader
from seed_jax.recipes.quickstart.config import TeacherStageConfig
from seed_jax.train import flops
from seed_jax.train.stage import Batches, Evaluator, LossOutput, Stage
from seed_jax.train.stages import warm_start
from seed_jax.train.stages.held_out_loss import held_out_evaluators
from seed_jax.train.stages.pair_data import image_batches, mixture_components
from seed_jax.typing import ParamPath, Tree

HEADS = "heads"  # the collection of everything beside the vision tower: the Q-Former and the discarded heads
EMBEDDING_WEIGHT = 2.0  # of the loss on the embedding, which learns slowest
# Fraction of images in colors outside the palette. With palette colors only, color and size of an object tell which
# shapes it can have, because held-out combinations are missing. That is learned before shapes are, and is wrong on the
# held-out combinations.
RECOLORED = 0.5


@dataclasses.dataclass(frozen=True)
class SceneReader:
    """Turn a caption record of the synthetic world into a row.

    A row holds `image` uint8 [S, S, 3], `labels` int32 [A] and `patches` int32 [N, P].

    Attributes:
        image_size: height and width in pixels.
        grid: patches along each axis.
    """

    image_size: int
    grid: int

    def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        if "truth" not in record.meta or not isinstance(record.items[0], bytes):
            raise UserError("The record is not a captioned synthetic image: build it with `--source world`.")
        image = images.resize(images.load(record.items[0]), self.image_size, "bicubic")
        scene = scene_from_dict(record.meta["truth"])
        labels, patches = scene_labels(scene), patch_labels(scene, self.grid)
        recolored = recolor(image, scene, rng) if rng.random() < RECOLORED else None
        if recolored is not None:
            image = recolored
            labels, patches = mask_color_labels(labels, ATTRIBUTES), mask_color_labels(patches, PATCH_ATTRIBUTES)
        return {"image": image, "labels": labels, "patches": patches}

    def describe(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class TeacherStage(Stage[TeacherStageConfig]):
    """Train a vision tower and a Q-Former to read the attributes of drawn scenes."""

    config_class = TeacherStageConfig
    kind = ModelKind.CLIP_VISION

    def __init__(self, config: TeacherStageConfig):
        super().__init__(config)
        self.architecture = teacher_architecture(config.model.config)
        precision = Precision("float32", config.precision.compute)
        self.model = AttributeReader(self.architecture, ATTRIBUTES, PATCH_ATTRIBUTES, precision)

    @property
    def batch_size(self) -> int:
        return self.config.data.batch_size

    def abstract_variables(self) -> Tree:
        return jax.eval_shape(self._init, jax.random.key(0))

    def _init(self, key: Key[Array, ""]) -> Tree:
        """Return boxed variables: `params` of the vision tower, `heads` for everything else."""
        size = self.architecture.image_size
        params = dict(self.model.init(key, jnp.zeros((1, size, size, 3)))["params"])
        vision = params.pop("vit")
        return {"params": vision, HEADS: params}

    def is_trainable(self, path: ParamPath) -> bool:
        return True

    def loss(self, variables: Tree, batch: Mapping[str, Array], key: Key[Array, ""]) -> LossOutput:
        """Sum the mean cross-entropies over attributes from the embedding, the queries and the patches."""
        params = {"vit": variables["params"], **variables[HEADS]}
        pixels = images.normalize(batch["image"])
        logits: Any = self.model.apply({"params": params}, pixels, rngs={"noise": key})
        errors = {
            "embedding": embedding_errors(logits.embedding, batch["labels"]),
            "queries": query_errors(logits.queries, batch["labels"]),
            "patches": patch_errors(logits.patches, batch["patches"]),
        }
        ones = jnp.ones(len(batch["image"]), jnp.float32)
        metrics = {}
        for name, (nll, accuracy) in errors.items():
            metrics[f"loss_{name}"] = WeightedSum.from_terms(nll, ones)
            metrics[f"accuracy_{name}"] = WeightedSum.from_terms(accuracy, ones)
        total = EMBEDDING_WEIGHT * errors["embedding"][0] + errors["queries"][0] + errors["patches"][0]
        return LossOutput(WeightedSum.from_terms(total, ones), metrics)

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        size, grid = self.architecture.image_size, self.architecture.vit.grid
        return {
            "image": jax.ShapeDtypeStruct((size, size, 3), np.uint8),
            "labels": jax.ShapeDtypeStruct((len(ATTRIBUTES),), np.int32),
            "patches": jax.ShapeDtypeStruct((grid**2, len(PATCH_ATTRIBUTES)), np.int32),
        }

    def flops_per_unit(self) -> float:
        params = sharding.unbox(self.abstract_variables())["params"]
        return flops.kernel_flops(params, lambda path: self.architecture.vit.num_tokens, self.is_trainable)

    @property
    def flops_convention(self) -> str:
        return f"{flops.TOKENIZER_CONVENTION}; the ViT alone"

    def prepare(self, workdir: AnyPath) -> None:
        del workdir  # the shards are opened by `batches`, and all weights are random

    def init_variables(self, key: Key[Array, ""], shardings: Tree) -> Tree:
        variables = sharding.jit_init(lambda key: sharding.unbox(self._init(key)), out_shardings=shardings)(key)
        init = self.config.model.init
        if not init:
            return variables
        # The heads that read attributes are not part of a teacher, so they start from random weights.
        vision = model_dir.open_lazily(Path(init) / "vision", self.kind).params
        tokenizer = model_dir.open_lazily(Path(init) / "start", ModelKind.IMAGE_TOKENIZER).params
        stored = {"params": vision, HEADS: warm_start.select(tokenizer, ("ln_vision", "qformer"))}
        return warm_start.overlay(variables, stored, init)

    def batches(self, local_indices: list[int]) -> Batches:
        data = self.config.data
        reader = SceneReader(self.architecture.image_size, self.architecture.vit.grid)
        return image_batches(data, mixture_components(data), reader, self.config.seed, local_indices)

    def evaluators(self) -> tuple[Evaluator, ...]:
        """Return the loss on `evaluate.data`."""
        data, evaluate = self.config.data, self.config.evaluate

        def make_batches(local_indices: list[int]) -> Batches:
            reader = SceneReader(self.architecture.image_size, self.architecture.vit.grid)
            return image_batches(data, (MixtureComponent(evaluate.data),), reader, self.config.seed, local_indices)

        def loss(variables: Tree, batch: Mapping[str, Array]) -> LossOutput:
            return self.loss(variables, batch, jax.random.key(0))

        return held_out_evaluators(evaluate, loss, make_batches, self.batch_size)

    def model_config(self) -> dict[str, Any]:
        vision = dataclasses.replace(self.architecture.vit, projection=self.architecture.embedding_width)
        return {"sizes": dataclasses.asdict(vision), "tokenizer": self.architecture.to_dict()}


def teacher_architecture(name: str) -> SeedTokenizerConfig:
    """Return the sizes of the tokenizer called `name`, with the ViT of a CLIP vision tower and without dropout."""
    config = getattr(SeedTokenizerConfig, name)()
    blocks = dataclasses.replace(config.vit.blocks, key_bias=True, epsilon=1e-5)
    return dataclasses.replace(
        config,
        vit=dataclasses.replace(config.vit, blocks=blocks, patch_bias=False, pre_norm=True),
        qformer=dataclasses.replace(config.qformer, dropout=0.0),
    )


def embedding_errors(
    logits: Sequence[Float[Array, "B _"]], labels: Int[Array, "B A"]
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Return each image's mean cross-entropy over attributes, and its accuracy over labeled attributes."""
    per_attribute = [_cross_entropy(one, labels[:, index]) for index, one in enumerate(logits)]
    errors, correct, labeled = (jnp.stack(part).astype(jnp.float32) for part in zip(*per_attribute, strict=True))
    return errors.mean(0), correct.sum(0) / labeled.sum(0)


def query_errors(
    logits: Float[Array, "B Q C"], labels: Int[Array, "B A"]
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """The same for queries, each of which predicts one class among those of all attributes."""
    counts = np.array([classes for _, classes in ATTRIBUTES])
    first_class = jnp.asarray(np.cumsum(counts) - counts)[None]
    targets = jnp.where(labels >= 0, labels + first_class, labels)
    attribute_of_query = np.arange(logits.shape[1]) % labels.shape[1]
    errors, correct, labeled = _cross_entropy(logits, targets[:, attribute_of_query])
    return errors.mean(1), correct.sum(1) / labeled.sum(1)


def patch_errors(
    logits: Sequence[Float[Array, "B N _"]], labels: Int[Array, "B N P"]
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Return each image's cross-entropy summed over patch attributes, and the accuracy on patches with objects."""
    has_object = labels[..., 0] < logits[0].shape[-1] - 1
    per_attribute = [_cross_entropy(one, labels[..., index]) for index, one in enumerate(logits)]
    errors, correct, labeled = (jnp.stack(part) for part in zip(*per_attribute, strict=True))
    # Background patches are many and easy: those with objects together weigh as much as all patches.
    num_patches = has_object.shape[-1]
    num_objects = jnp.maximum(has_object.sum(-1, keepdims=True), 1)
    weight = jnp.where(has_object, 1.0 / num_objects, 1.0 / num_patches)
    num_correct = (correct & has_object[None]).sum((0, -1))
    num_labeled = (labeled & has_object[None]).sum((0, -1))
    return (errors.sum(0) * weight).sum(-1), num_correct / jnp.maximum(num_labeled, 1)


def _cross_entropy(
    logits: Float[Array, "*S C"], targets: Int[Array, "*S"]
) -> tuple[Float[Array, "*S"], Bool[Array, "*S"], Bool[Array, "*S"]]:
    """Return cross-entropies, which predictions are correct, and which targets are labeled (the others cost 0)."""
    is_labeled = targets >= 0
    log_probs = jax.nn.log_softmax(logits)
    error = -jnp.take_along_axis(log_probs, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    is_correct = (logits.argmax(-1) == targets) & is_labeled
    return jnp.where(is_labeled, error, 0.0), is_correct, is_labeled

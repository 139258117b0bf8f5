"""The stage `world_teacher`: the encoders that the drawn world's tokenizer starts from.

What EVA, CLIP and BLIP-2 learnt from hundreds of millions of captioned pictures is learnt here from the truth about
drawn scenes. The workdir is a CLIP vision tower for `teacher.vision` and `source.vision`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from seed_jax import images, sharding
from seed_jax.convert.tokenizer.clip import KIND
from seed_jax.data.batches.pairs import PairBatches
from seed_jax.data.batches.record_stream import Part, RecordStream
from seed_jax.data.shards.records import Record
from seed_jax.data.world.labels import ATTRIBUTES, PATCH_ATTRIBUTES, labels, patch_labels, without_colours
from seed_jax.data.world.recolouring import recolour
from seed_jax.data.world.tasks import scene_of
from seed_jax.errors import UserError
from seed_jax.losses.next_token import WeightedSum
from seed_jax.models.tokenizer.config import NAMED_SIZES, SeedTokenizerConfig
from seed_jax.precision import Precision
from seed_jax.quickstart.attribute_reader import AttributeReader
from seed_jax.train.flops import TOKENIZER_CONVENTION, kernels_flops
from seed_jax.train.stage import LossOutput, Stage

Tree = dict[str, Any]
HEADS = "heads"  # the collection of what is thrown away, and of the Q-Former that tokenizers start from

EMBEDDING = 2.0  # weight of reading the embedding, which learns last
# Share of pictures in colours without names. With named ones only, a thing's colour and size tell which shapes it can
# have, those of the held combinations left out: that is learnt before shapes are, and is wrong where it is measured.
RECOLOURED = 0.5


@dataclasses.dataclass(frozen=True)
class TruthReader:
    """Turn a record of a drawn scene into a row: `image` uint8 [S, S, 3], `labels` int32 [A], `patches` [N, P]."""

    image_size: int
    grid: int

    def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        if "truth" not in record.meta or not isinstance(record.items[0], bytes):
            raise UserError("it is no picture of the drawn world: build the shards from captions of `--source world`.")
        picture = images.resize(images.load(record.items[0]), self.image_size, "bicubic")
        scene = scene_of(record.meta["truth"])
        whole, patches = labels(scene), patch_labels(scene, self.grid)
        other = recolour(picture, scene, rng) if rng.random() < RECOLOURED else None
        if other is not None:
            picture = other
            whole, patches = without_colours(whole, ATTRIBUTES), without_colours(patches, PATCH_ATTRIBUTES)
        return {"image": picture, "labels": whole, "patches": patches}

    def describe(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def build(config: ml_collections.ConfigDict, workdir: Path) -> Stage:
    """Make the stage `world_teacher`."""
    del workdir
    sizes = named(config.model.sizes)
    model = AttributeReader(sizes, ATTRIBUTES, PATCH_ATTRIBUTES, Precision("float32", config.precision.compute))
    side = sizes.image_size
    stream = RecordStream([Part(part["path"], weight=part["weight"]) for part in config.data.parts], config.seed)
    vision = dataclasses.replace(sizes.vit, projection=sizes.embedding_width)
    flops = kernels_flops(
        sharding.unbox(abstract(model))["params"], lambda path: sizes.vit.num_tokens, lambda path: True
    )
    return Stage(
        kind=KIND,
        model_config={"sizes": dataclasses.asdict(vision), "tokenizer": sizes.to_dict()},
        files={},
        abstract=functools.partial(abstract, model),
        init=functools.partial(init, model),
        trainable=lambda path: True,
        loss=functools.partial(loss, model),
        batches=functools.partial(_batches, stream, TruthReader(side, sizes.vit.grid), config.data),
        batch_size=config.data.batch_size,
        row_spec={
            "image": jax.ShapeDtypeStruct((side, side, 3), np.uint8),
            "labels": jax.ShapeDtypeStruct((len(ATTRIBUTES),), np.int32),
            "patches": jax.ShapeDtypeStruct((sizes.vit.grid**2, len(PATCH_ATTRIBUTES)), np.int32),
        },
        tokens_per_batch=config.data.batch_size,
        unit="pictures",
        flops_per_token=flops,
        flops_convention=f"{TOKENIZER_CONVENTION}; the ViT alone",
    )


def named(sizes: str) -> SeedTokenizerConfig:
    """Return the sizes of the tokenizer that the teacher is for; those of "tiny" get a CLIP trunk."""
    if sizes not in NAMED_SIZES:
        raise UserError(f"model.sizes is {sizes!r}, expected {' or '.join(NAMED_SIZES)}.")
    config = getattr(SeedTokenizerConfig, sizes)()
    blocks = dataclasses.replace(config.vit.blocks, key_bias=True, epsilon=1e-5)
    return dataclasses.replace(
        config,
        vit=dataclasses.replace(config.vit, blocks=blocks, patch_bias=False, pre_norm=True),
        qformer=dataclasses.replace(config.qformer, dropout=0.0),
    )


def _batches(stream: RecordStream, reader: TruthReader, data: ml_collections.ConfigDict, rows: list[int]):
    return PairBatches(stream, reader, batch_size=data.batch_size, rows=rows, workers=0, prefetch=data.prefetch)


def abstract(model: AttributeReader) -> Tree:
    """Return boxed shapes: `params` are the vision tower's, `heads` all else."""
    return jax.eval_shape(lambda key: _parted(_fresh(model, key)), jax.random.key(0))


def init(model: AttributeReader, key: Key[Array, ""], cut: Tree) -> Tree:
    return jax.jit(lambda key: sharding.unbox(_parted(_fresh(model, key))), out_shardings=cut)(key)


def _fresh(model: AttributeReader, key: Key[Array, ""]) -> Tree:
    side = model.config.image_size
    return model.init(key, jnp.zeros((1, side, side, 3)))["params"]


def _parted(params: Tree) -> Tree:
    return {"params": params["vit"], HEADS: {name: tree for name, tree in params.items() if name != "vit"}}


def loss(model: AttributeReader, variables: Tree, batch: Mapping[str, Array], key: Key[Array, ""]) -> LossOutput:
    """Return mean cross-entropies over attributes, added up: from the embedding, the queries, and the patches."""
    params = {"vit": variables["params"], **variables[HEADS]}
    found = model.apply({"params": params}, images.normalize(batch["image"]), rngs={"noise": key})
    terms, metrics = [], {}
    ones = jnp.ones(len(batch["image"]), jnp.float32)
    for name, (errors, right), weight in (
        ("embedding", _scored(found.from_embedding, batch["labels"]), EMBEDDING),
        ("queries", _scored_queries(found.from_queries, batch["labels"]), 1.0),
    ):
        terms.append(weight * errors)
        metrics[f"loss_{name}"] = WeightedSum.of(errors, ones)
        metrics[f"right_{name}"] = WeightedSum.of(right, ones)
    errors, right = _scored_patches(found.from_patches, batch["patches"])
    terms.append(errors)
    metrics |= {"loss_patches": WeightedSum.of(errors, ones), "right_patches": WeightedSum.of(right, ones)}
    return LossOutput(WeightedSum.of(sum(terms), ones), metrics)


def _scored_patches(
    logits: tuple[Float[Array, "B N _"], ...], labels: Int[Array, "B N P"]
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Return each picture's cross-entropy, summed over attributes, and the share that is right where things are."""
    errors, right, asked = 0.0, 0.0, 0.0
    things = labels[..., 0] < logits[0].shape[-1] - 1
    for place, each in enumerate(logits):
        error, correct, said = _one(each, labels[..., place])
        errors, right, asked = errors + error, right + (correct & things), asked + (said & things)
    # Patches of the ground are many and easy: those with things count as much as all others together.
    weight = jnp.where(things, 1.0 / jnp.maximum(things.sum(-1, keepdims=True), 1), 1.0 / things.shape[-1])
    return (errors * weight).sum(-1), right.sum(-1) / jnp.maximum(asked.sum(-1), 1)


def _scored_queries(
    logits: Float[Array, "B Q C"], labels: Int[Array, "B A"]
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """The same as `_scored` of queries, each of which names one class among those of all attributes."""
    counts = np.array([count for _, count in ATTRIBUTES])
    first = jnp.asarray(np.cumsum(counts) - counts)[None]
    wanted = jnp.where(labels >= 0, labels + first, labels)
    asked = np.arange(logits.shape[1]) % labels.shape[1]
    errors, right, said = _one(logits, wanted[:, asked])
    return errors.mean(1), right.sum(1) / said.sum(1)


def _scored(
    logits: tuple[Float[Array, "B _"], ...], labels: Int[Array, "B A"]
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Return each picture's mean cross-entropy, and its share of attributes that are right."""
    found = [_one(each, labels[:, place]) for place, each in enumerate(logits)]
    errors, right, said = (jnp.stack(part).astype(jnp.float32) for part in zip(*found, strict=True))
    return errors.mean(0), right.sum(0) / said.sum(0)


def _one(
    logits: Float[Array, "*S C"], wanted: Int[Array, "*S"]
) -> tuple[Float[Array, "*S"], Bool[Array, "*S"], Bool[Array, "*S"]]:
    """Return cross-entropies, what is right, and what is asked at all: what is unsaid costs nothing."""
    said = wanted >= 0
    error = -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(wanted, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(said, error, 0.0), (logits.argmax(-1) == wanted) & said, said

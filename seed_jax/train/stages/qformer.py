"""Stage I of the image tokenizer: a causal Q-Former learns to match pictures and captions (spec A.9)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Key

from seed_jax import images, sharding
from seed_jax.checkpoint import model_dir
from seed_jax.convert.key_table import Entry
from seed_jax.convert.tokenizer.key_table import SHARED, image_text_table
from seed_jax.data.text.bert import FILE as VOCABULARY_FILE
from seed_jax.errors import UserError
from seed_jax.evaluation.eval_pairs import HeldPairs
from seed_jax.evaluation.retrieval import Vectors, recall
from seed_jax.losses.next_token import WeightedSum
from seed_jax.losses.tokenizer import contrastive_loss
from seed_jax.models.tokenizer.config import NAMED_SIZES
from seed_jax.models.tokenizer.image_text import ImageText, ImageTextConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig
from seed_jax.precision import Precision
from seed_jax.train import flops
from seed_jax.train.stage import Evaluator, LossOutput, ParamPath, Stage, no_batches
from seed_jax.train.stages import warm_start
from seed_jax.train.stages.pair_data import find_sources, make_pair_data

Tree = dict[str, Any]
KIND = "seed_qformer"
BERT_WORDS = 30523  # of bert-base-uncased and [DEC]
ITC_GRADIENTS = ("own", "through_gather")


def build(config: ml_collections.ConfigDict, workdir: Path) -> Stage:
    """Make the stage `qformer`."""
    _check(config)
    sources = find_sources(config, workdir, inherited_vocabulary(config.start.init))
    sizes = _sizes(config, sources.vocabulary.size)
    model = ImageText(sizes, Precision("float32", config.precision.compute), config.model.remat)
    data = make_pair_data(config, sources, sizes.vit.image_size)
    return dataclasses.replace(
        _stage(config, model),
        files={VOCABULARY_FILE: sources.vocabulary_file},
        batches=data.make_batches,
        row_spec=data.row_spec,
        evaluators=_evaluators(config, model, data.held),
    )


def sketch(config: ml_collections.ConfigDict) -> Stage:
    """Make the stage for its step's sake: the vocabulary's size is BERT's, no data, no weights."""
    _check(config)
    model = ImageText(_sizes(config, BERT_WORDS), Precision("float32", config.precision.compute), config.model.remat)
    return _stage(config, model)


def _stage(config: ml_collections.ConfigDict, model: ImageText) -> Stage:
    """Return what a step depends on; `build` adds what a run needs."""
    size, length = model.config.vit.image_size, config.data.text_length
    pixels = jax.ShapeDtypeStruct((size, size, 3), jnp.uint8)
    text, mask = (jax.ShapeDtypeStruct((length,), dtype) for dtype in (jnp.int32, jnp.bool_))
    return Stage(
        kind=KIND,
        model_config={"sizes": model.config.to_dict()},
        files={},
        abstract=functools.partial(abstract, model),
        init=functools.partial(_init, config, model),
        trainable=is_trained,
        loss=functools.partial(loss, model, config.model.itc_gradient == "through_gather"),
        batches=no_batches,
        batch_size=config.data.batch_size,
        row_spec={"image": pixels, "text": text, "text_mask": mask},
        tokens_per_batch=config.data.batch_size,
        unit="pictures",
        flops_per_token=_flops(model, length),
        flops_convention=flops.TOKENIZER_CONVENTION,
    )


def _flops(model: ImageText, text_length: int) -> float:
    params = sharding.unbox(abstract(model))["params"]
    positions = flops.encoder_positions(model.config, text_length)
    return flops.kernels_flops(params, positions, lambda path: path[0] != "vit")


def _check(config: ml_collections.ConfigDict) -> None:
    if config.model.itc_gradient not in ITC_GRADIENTS:
        raise UserError(
            f"model.itc_gradient is {config.model.itc_gradient!r}, expected one of {', '.join(ITC_GRADIENTS)}."
        )
    if config.optimizer.accumulation != 1:
        raise UserError(
            f"optimizer.accumulation is {config.optimizer.accumulation}, expected 1 in stage qformer: pictures are "
            "told apart within the whole batch, which microbatches would cut."
        )


def is_trained(path: ParamPath) -> bool:
    """Everything but the ViT trains; `ln_vision` does, too."""
    return path[1] != "vit"


def loss(
    model: ImageText, through_gather: bool, variables: Tree, batch: Mapping[str, Array], key: Key[Array, ""]
) -> LossOutput:
    """Return the contrastive loss over the global batch."""
    features = model.apply(
        variables,
        images.normalize(batch["image"]),
        batch["text"],
        batch["text_mask"],
        deterministic=False,
        rngs={"dropout": key},
    )
    found = contrastive_loss(features.image, features.text, features.temperature, through_gather=through_gather)
    metrics = {
        "i2t_accuracy": found.image_to_text_accuracy,
        "t2i_accuracy": found.text_to_image_accuracy,
        "temperature": WeightedSum(jnp.float32(features.temperature), jnp.ones(())),
    }
    return LossOutput(found.total, metrics)


def abstract(model: ImageText) -> Tree:
    """Return boxed shapes of {"params"}."""
    size = model.config.vit.image_size
    image, text = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32), jax.ShapeDtypeStruct((1, 4), jnp.int32)
    return {"params": jax.eval_shape(model.init, jax.random.key(0), image, text)["params"]}


def _init(config: ml_collections.ConfigDict, model: ImageText, key: Key[Array, ""], cut: Tree) -> Tree:
    """Return variables: fresh, and over them what `config.start` names."""

    def fresh(key):
        size = model.config.vit.image_size
        created = model.init(key, jnp.zeros((1, size, size, 3)), jnp.zeros((1, 4), jnp.int32))
        return {"params": sharding.unbox(created["params"])}

    variables = jax.jit(fresh, out_shardings=cut)(key)
    table = image_text_table(model.config)
    if config.start.init:
        variables = {"params": _load(Path(config.start.init), table, variables["params"])}
    return {"params": warm_start.read_foreign(config, table, variables["params"])}


def _load(directory: Path, table: Sequence[Entry], params: Tree) -> Tree:
    """Go on from a stage I model, or take the encoder, and the text side where it is there, of an image tokenizer."""
    folder, stored = model_dir.read_config(directory)
    loaded = warm_start.load_collections(directory, stored["kind"])["params"]
    if stored["kind"] != KIND:
        params = warm_start.read_extras(folder, table, params)
        loaded = warm_start.only(loaded, SHARED)
    return warm_start.overlay(params, loaded, str(directory))


def inherited_vocabulary(directory: str) -> Path | None:
    """Return the vocabulary that lies in the model directory or workdir to start from."""
    if not directory:
        return None
    folder, _ = model_dir.read_config(directory)
    return folder / VOCABULARY_FILE if (folder / VOCABULARY_FILE).is_file() else None


def _sizes(config: ml_collections.ConfigDict, vocab_size: int) -> ImageTextConfig:
    if config.start.init:
        folder, stored = model_dir.read_config(config.start.init)
        where = str(folder / model_dir.CONFIG)
        if stored["kind"] == KIND:
            sizes = ImageTextConfig.from_dict(stored["sizes"], where)
        else:
            sizes = _of_tokenizer(SeedTokenizerConfig.from_dict(stored["sizes"], where), config.model.joint_width)
    elif config.model.sizes in NAMED_SIZES:
        sizes = _of_tokenizer(getattr(SeedTokenizerConfig, config.model.sizes)(), config.model.joint_width)
    else:
        raise UserError(f"model.sizes is {config.model.sizes!r}, expected {' or '.join(NAMED_SIZES)}.")
    qformer = dataclasses.replace(sizes.qformer, vocab_size=vocab_size, dropout=config.model.dropout)
    return dataclasses.replace(sizes, qformer=qformer)


def _of_tokenizer(tokenizer: SeedTokenizerConfig, joint_width: int) -> ImageTextConfig:
    qformer = dataclasses.replace(tokenizer.qformer, vocab_size=tokenizer.qformer.vocab_size or 1)
    return ImageTextConfig(tokenizer.vit, qformer, joint_width, tokenizer.ln_vision_epsilon)


def _evaluators(config: ml_collections.ConfigDict, model: ImageText, held: HeldPairs | None) -> tuple[Evaluator, ...]:
    if held is None:
        return ()
    return (Evaluator("held", config.evaluate.every_steps, retrieval(model, held)),)


def retrieval(model: ImageText, held: HeldPairs) -> Callable[[Tree], dict[str, float]]:
    """Return the measurement: variables -> recall at 1, 5 and 10, both ways."""

    def pictures(variables, rows):
        states = model.apply(variables, images.normalize(rows["image"]), method="embeddings")
        return {"vector": model.apply(variables, states, method="project")}

    def texts(variables, rows):
        return {"vector": model.apply(variables, rows["text"], rows["text_mask"], method="embed_text")}

    def run(variables: Tree) -> dict[str, float]:
        found = held.over_pictures(pictures, variables)["vector"]
        words = held.over_captions(texts, variables)["vector"]
        return recall(Vectors(found, words, held.image_of_text))

    return run

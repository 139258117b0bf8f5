"""Stage II of the image tokenizer: a codebook and the way from codes to CLIP's image embedding (spec A.10)."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Key

from seed_jax import images, sharding
from seed_jax.data.text.bert import FILE as VOCABULARY_FILE
from seed_jax.errors import UserError
from seed_jax.losses.next_token import WeightedSum
from seed_jax.precision import Precision
from seed_jax.train import flops
from seed_jax.train.stage import LossOutput, ParamPath, Stage
from seed_jax.train.stages.codebook import init
from seed_jax.train.stages.codebook import revival as health
from seed_jax.train.stages.codebook.evaluation import make_evaluators
from seed_jax.train.stages.codebook.model import CodebookModel
from seed_jax.train.stages.codebook.objective import Objective, terms
from seed_jax.train.stages.codebook.revival import HealthOptions
from seed_jax.train.stages.codebook.teachers import GIVEN, Teachers, make_teachers
from seed_jax.train.stages.pair_data import PairData, find_sources, make_pair_data
from seed_jax.train.stages.qformer import inherited_vocabulary

Tree = dict[str, Any]
KIND = "seed_tokenizer"
_FROZEN = ("vit", "ln_vision", "qformer")


def build(config: ml_collections.ConfigDict, workdir: Path) -> Stage:
    """Make the stage `codebook`."""
    options = HealthOptions(**config.codebook.to_dict())
    _check(config, options)
    sources = find_sources(config, workdir, inherited_vocabulary(config.start.init))
    sizes = init.sizes(config, sources.vocabulary.size)
    precision = Precision("float32", config.precision.compute)
    model = CodebookModel(sizes, precision, config.model.remat)
    teachers = make_teachers(config, sizes.tokenizer.image_size, sizes.tokenizer.embedding_width)
    objective = Objective(**config.objective.to_dict(), gradient_to_codebook=not options.ema_decay)
    data = make_pair_data(
        config,
        sources,
        sizes.tokenizer.image_size,
        clip_vocabulary=teachers.text_vocabulary,
        embedding_width=sizes.tokenizer.embedding_width if config.teacher.vision == GIVEN else None,
    )
    return Stage(
        kind=KIND,
        model_config=sizes.to_dict(),
        files={VOCABULARY_FILE: sources.vocabulary_file} if sizes.joint_width else {},
        abstract=functools.partial(abstract, model, teachers, options),
        init=functools.partial(_init, config, model, teachers, options, data),
        trainable=is_trained,
        loss=functools.partial(loss, objective, model, teachers, options),
        batches=data.make_batches,
        batch_size=config.data.batch_size,
        row_spec=data.row_spec,
        tokens_per_batch=config.data.batch_size,
        unit="pictures",
        flops_per_token=_flops(model, teachers, options),
        flops_convention=flops.TOKENIZER_CONVENTION,
        evaluators=make_evaluators(config, model, data.held),
        after_step=functools.partial(after_step, options),
    )


def _check(config: ml_collections.ConfigDict, options: HealthOptions) -> None:
    if options.restart_after and config.optimizer.accumulation != 1:
        raise UserError(
            f"optimizer.accumulation is {config.optimizer.accumulation}, expected 1 with codebook.restart_after: dead "
            "codes move onto vectors of the whole batch."
        )


def is_trained(path: ParamPath) -> bool:
    """Quantiser, decoders and text branch train; the encoder, the text tower and the teachers do not.

    The codebook's running statistics count as trained because they change with every step.
    """
    if path[0] == "params":
        return path[1] not in _FROZEN
    return path[0] in ("text_branch", "health")


def loss(
    objective: Objective,
    model: CodebookModel,
    teachers: Teachers,
    options: HealthOptions,
    variables: Tree,
    batch: Mapping[str, Array],
    key: Key[Array, ""],
) -> LossOutput:
    """Return the weighted sum of all terms, each term, and how the codes were used."""
    dropout_key, restart_key = jax.random.split(key)
    image = images.normalize(batch["image"])
    found = terms(
        objective,
        model.tokenizer,
        variables,
        image,
        teachers.image_target(variables.get("teacher", {}), image, batch),
        branch=model.branch,
        text_target=teachers.text_target(variables.get("teacher", {}), batch),
        rngs={"dropout": dropout_key},
    )
    ones = jnp.ones(len(image), jnp.float32)
    codes, num_codes = found.encoded.codes, model.sizes.tokenizer.num_codes
    seen = health.observe(found.encoded.prequant, codes, num_codes, options, restart_key)
    use = health.usage(codes, num_codes)
    idle = health.idle_after(variables["health"]["idle"], use.count)
    dead = (idle >= options.dead_after).mean(dtype=jnp.float32)
    metrics = {f"loss_{name}": WeightedSum.of(term, ones) for name, term in found.named.items()}
    shown = {"codes_used": use.used, "code_perplexity": use.perplexity, "codes_dead": dead}
    metrics |= {name: WeightedSum(value, jnp.ones(())) for name, value in shown.items()}
    return LossOutput(WeightedSum.of(found.total, ones), metrics, seen)


def after_step(options: HealthOptions, before: Tree, after: Tree, seen: Mapping[str, Array]) -> Tree:
    """Move the codebook where its options say so, and remember how it was used."""
    codebook, state = health.advance(options, before["health"], after["params"]["codebook"], seen)
    return {**after, "params": {**after["params"], "codebook": codebook}, "health": state}


def abstract(model: CodebookModel, teachers: Teachers, options: HealthOptions) -> Tree:
    """Return boxed shapes of every collection."""
    boxed = model.abstract()
    if teachers.sources:
        boxed["teacher"] = teachers.abstract()
    codebook = sharding.unbox(boxed["params"]["codebook"])
    state = jax.eval_shape(lambda codebook: health.first_state(codebook, options), codebook)
    return {**boxed, "health": state}


def _init(
    config: ml_collections.ConfigDict,
    model: CodebookModel,
    teachers: Teachers,
    options: HealthOptions,
    data: PairData,
    key: Key[Array, ""],
    cut: Tree,
) -> Tree:
    """Return variables: fresh, over them what `config.start` names, and the codebook from k-means where asked."""
    key_model, key_teacher, key_codes = jax.random.split(key, 3)
    fresh = jax.jit(lambda key: sharding.unbox(model.init(key)), out_shardings={k: cut[k] for k in model.abstract()})
    variables = init.load(config, model.sizes, fresh(key_model))
    if options.start == "kmeans":
        num_codes = model.sizes.tokenizer.num_codes
        count = options.kmeans_vectors * num_codes
        vectors = init.first_vectors(count, config.data.batch_size, model, variables, data)
        compute = jax.jit(health.kmeans, static_argnums=(1, 3))
        centres = compute(vectors, num_codes, key_codes, options.kmeans_iterations)
        variables["params"]["codebook"] = jax.device_put(centres, cut["params"]["codebook"])
    if teachers.sources:
        variables["teacher"] = teachers.init(key_teacher, cut["teacher"])
    first = jax.jit(lambda codebook: health.first_state(codebook, options), out_shardings=cut["health"])
    return {**variables, "health": first(variables["params"]["codebook"])}


def _flops(model: CodebookModel, teachers: Teachers, options: HealthOptions) -> float:
    shapes = sharding.unbox(abstract(model, teachers, options))
    positions = flops.encoder_positions(model.sizes.tokenizer, 0)
    return sum(
        flops.kernels_flops(shapes[name], positions, lambda path, name=name: is_trained((name, *path)))
        for name in ("params", "text_branch")
        if name in shapes
    )

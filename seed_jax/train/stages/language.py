"""Stages that train the language model: next-token prediction over packed text and image codes.

`config.model.train` says what is trained: "lora" adapters and, whole, embeddings, head and norms (spec D.1); "full"
everything but the embedding table (spec D.6: freezing it is the steadier choice).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Key

from seed_jax import sharding
from seed_jax.checkpoint import model_dir
from seed_jax.data.batches.mixture_config import make_parts
from seed_jax.data.batches.packed import packed_batches
from seed_jax.data.batches.packing import empty_batch
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from seed_jax.losses.next_token import WeightedSum, next_token_loss
from seed_jax.models.llama.model import Llama, LlamaConfig
from seed_jax.models.nn import lora
from seed_jax.models.nn.attention import check_implementation
from seed_jax.precision import Precision
from seed_jax.train import flops
from seed_jax.train.stage import Batches, LossOutput, ParamPath, Stage, no_batches
from seed_jax.train.stages.language_init import KIND, abstract, start

Tree = dict[str, Any]
TINY_VOCABULARY = 530  # of the :tiny variants' embedded data
TOKENIZER_FILES = ("tokenizer.model", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json")


def is_trained_with_lora(path: ParamPath) -> bool:
    """Adapters, embeddings, head and norms train; the projections under the adapters are frozen (spec D.1)."""
    return path[0] == "lora" or path[1] in ("embed_tokens", "lm_head") or path[-1] == "scale"


def is_trained_in_full(path: ParamPath) -> bool:
    """Everything but the embedding table trains (spec D.6)."""
    return path[1] != "embed_tokens"


def is_trained_from_nothing(path: ParamPath) -> bool:
    """Everything trains: a model that starts from random weights has no embeddings worth keeping."""
    return True


# `config.model.train` -> which variables train
TRAINED: dict[str, Callable[[ParamPath], bool]] = {
    "lora": is_trained_with_lora,
    "full": is_trained_in_full,
    "all": is_trained_from_nothing,
}


def build(config: ml_collections.ConfigDict, workdir: Path | epath.Path) -> Stage:
    """Make a stage of the language model: pre-training with LoRA, full fine-tuning, or instruction tuning."""
    _check(config)
    prepared = demo_data(config, workdir)
    vocabulary_dir = prepared.vocabulary if prepared else Path(config.data.vocabulary)
    vocabulary = Vocabulary.load(vocabulary_dir)
    model = _model(config, _sizes(config, vocabulary))
    parts = prepared.parts(config.stage) if prepared else config.data.parts
    stage = make_stage(config, model, range(vocabulary.first_code, vocabulary.first_code + vocabulary.num_codes))
    merged_dtype = config.precision.frozen if model.lora else "float32"
    return dataclasses.replace(
        stage,
        model_config={**stage.model_config, "image_tokenizer": image_tokenizer(prepared, workdir)},
        files={name: vocabulary_dir / name for name in TOKENIZER_FILES if (vocabulary_dir / name).exists()},
        init=functools.partial(start, model, config.model.init, merged_dtype),
        batches=functools.partial(batches, config, parts, vocabulary),
        finish=finish(prepared, config.stage),
    )


def sketch(config: ml_collections.ConfigDict) -> Stage:
    """Make the stage for its step's sake: sizes by name, no data, no weights."""
    _check(config)
    directory = Path(config.data.vocabulary)
    if config.data.vocabulary and directory.is_dir():
        vocabulary = Vocabulary.load(directory)
        codes, size = range(vocabulary.first_code, vocabulary.first_code + vocabulary.num_codes), vocabulary.size
    else:  # which of a picture's tokens come first is not known without the files, and changes nothing
        size = TINY_VOCABULARY if config.model.sizes == "tiny" else LlamaConfig.seed_8b().vocab_size
        codes = range(size // 2, size)
    return make_stage(config, _model(config, _named_sizes(config, size)), codes)


def _check(config: ml_collections.ConfigDict) -> None:
    if config.model.train not in TRAINED:
        raise UserError(f"model.train is {config.model.train!r}, expected one of {', '.join(TRAINED)}.")
    check_implementation(config.model.attention)


def _model(config: ml_collections.ConfigDict, sizes: LlamaConfig) -> Llama:
    with_lora = config.model.train == "lora"
    return Llama(
        sizes,
        precision=Precision("float32", config.precision.compute),
        remat=config.model.remat,
        lora=lora.LoraSpec(config.lora.rank, config.lora.alpha, config.lora.dropout) if with_lora else None,
        attention=config.model.attention,
    )


def make_stage(config: ml_collections.ConfigDict, model: Llama, codes: range) -> Stage:
    """Return what a step depends on; `build` adds what a run needs."""
    spec, trainable, length = model.lora, TRAINED[config.model.train], config.data.sequence_length
    described = {"rank": spec.rank, "alpha": spec.alpha, "dropout": spec.dropout} if spec else None
    return Stage(
        kind=KIND,
        model_config={"sizes": model.config.to_dict(), "lora": described, "image_tokenizer": None},
        files={},
        abstract=functools.partial(abstract, model),
        init=functools.partial(start, model, "", "float32"),
        trainable=trainable,
        loss=functools.partial(_loss, model, codes, config.loss_chunk),
        batches=no_batches,
        batch_size=config.data.batch_size,
        row_spec=row_spec(length),
        tokens_per_batch=config.data.batch_size * length,
        flops_per_token=_flops_per_token(model, trainable, length),
        flops_convention="6 per trained and 4 per frozen matmul parameter and token, causal attention",
    )


def _sizes(config: ml_collections.ConfigDict, vocabulary: Vocabulary) -> LlamaConfig:
    if config.model.init:
        _, stored = model_dir.read_config(config.model.init, KIND)
        return LlamaConfig.from_dict({**stored["sizes"], "vocab_size": vocabulary.size})
    sizes = _named_sizes(config, vocabulary.size)
    if sizes.vocab_size != vocabulary.size:
        raise UserError(
            f"data.vocabulary has {vocabulary.size} tokens, model.sizes={config.model.sizes} needs {sizes.vocab_size}."
        )
    return sizes


def _named_sizes(config: ml_collections.ConfigDict, vocab_size: int) -> LlamaConfig:
    known = {"seed_8b": LlamaConfig.seed_8b, "seed_14b": LlamaConfig.seed_14b}
    known["tiny"] = functools.partial(LlamaConfig.tiny, vocab_size)
    if config.model.sizes not in known:
        raise UserError(f"model.sizes is {config.model.sizes!r}, expected one of {', '.join(known)}.")
    return known[config.model.sizes]()


def _loss(
    model: Llama, codes: range, chunk: int, variables: Tree, batch: dict[str, Array], key: Key[Array, ""]
) -> LossOutput:
    """Return the next-token loss, split into image codes and everything else (text, delimiters, EOS)."""
    hidden = model.apply(
        variables,
        batch["tokens"],
        segment_ids=batch["segment_ids"],
        positions=batch["positions"],
        deterministic=False,
        method="features",
        rngs={"dropout": key},
    )
    targets = batch["targets"]
    losses = next_token_loss(
        hidden,
        variables["params"]["lm_head"]["kernel"],
        targets,
        batch["loss_mask"],
        vocab_size=model.config.vocab_size,
        split=(targets >= codes.start) & (targets < codes.stop),
        chunk=chunk,
        precision=model.precision,
    )
    useful = batch["segment_ids"] > 0
    packed = WeightedSum(useful.sum().astype(jnp.float32), jnp.float32(useful.size))
    return LossOutput(losses.total, {"loss_text": losses.rest, "loss_image": losses.split, "packed_share": packed})


def _flops_per_token(model: Llama, trainable: Callable[[ParamPath], bool], length: int) -> float:
    matrices = {
        path: leaf.size
        for path, leaf in flatten_dict(sharding.unbox(abstract(model))).items()
        if path[-1] in ("kernel", "a", "b")
    }
    trained = sum(size for path, size in matrices.items() if trainable(path))
    return flops.transformer_flops_per_token(
        trained_matmul=trained,
        frozen_matmul=sum(matrices.values()) - trained,
        layers=model.config.num_layers,
        hidden=model.config.hidden_size,
        length=length,
    )


def demo_data(config: ml_collections.ConfigDict, workdir: Path | epath.Path) -> Any:
    """Return the embedded data below the workdir, made where it is not there yet; None unless the config wants it."""
    if not config.data.demo:
        return None
    if not isinstance(workdir, Path):
        raise UserError(f"data.demo makes its data below a local --workdir, not in {workdir}.")
    from seed_jax import demo  # only the :tiny variants need it, and the inference side with it

    return demo.prepare(workdir / "demo", config.seed)


def finish(prepared: Any, stage: str) -> Callable[[Tree, Path], None]:
    """Return what to do after the last step: show answers of a demonstration."""
    if prepared is None:
        return lambda variables, workdir: None
    from seed_jax import demo

    return functools.partial(demo.show, prepared, stage)


def batches(
    config: ml_collections.ConfigDict, parts: Sequence[dict[str, Any]], vocabulary: Vocabulary, rows: list[int]
) -> Batches:
    """Open the shards and return the packed batches of this process's rows."""
    if not parts:
        raise UserError("data.parts is empty: name at least one folder of shards, or set data.demo=True.")
    return iter(
        packed_batches(
            make_parts(parts, vocabulary, config.data.get("weight_by", "samples")),
            rows=config.data.batch_size,
            lanes=rows,
            length=config.data.sequence_length,
            seed=config.seed,
            tokenizer=config.data.image_tokenizer or None,
            prefetch=config.data.prefetch,
        )
    )


def row_spec(length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of one packed row."""
    return {name: jax.ShapeDtypeStruct(row.shape[1:], row.dtype) for name, row in empty_batch(1, length).items()}


def image_tokenizer(prepared: Any, workdir: Path | epath.Path) -> str | None:
    """Return where the demonstration's image tokenizer lies, seen from the model directory."""
    # Relative to the folder of config.json, so that a workdir can be moved.
    return str(Path("..") / prepared.image_tokenizer.relative_to(workdir)) if prepared else None

"""Stages that train the language model: next-token prediction over packed text and image codes.

`config.model.train` says what is trained: "lora" adapters and, whole, embeddings, head and norms (spec D.1); "full"
everything but the embedding table (spec D.6: freezing it is the steadier choice).
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Key

from seed_jax import sharding
from seed_jax.checkpoint import model_dir
from seed_jax.data.packing import empty_batch
from seed_jax.data.parts import make_parts
from seed_jax.data.pipeline import packed_batches
from seed_jax.data.vocab import Vocabulary
from seed_jax.errors import UserError
from seed_jax.losses import WeightedSum, next_token_loss
from seed_jax.models import lora
from seed_jax.models.llama import Llama, LlamaConfig
from seed_jax.precision import Precision
from seed_jax.train import flops
from seed_jax.train.language_start import KIND, abstract, start
from seed_jax.train.stages import Batches, LossOutput, ParamPath, Stage

Tree = dict[str, Any]
TOKENIZER_FILES = ("tokenizer.model", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json")


def is_trained_with_lora(path: ParamPath) -> bool:
    """Adapters, embeddings, head and norms train; the projections under the adapters are frozen (spec D.1)."""
    return path[0] == "lora" or path[1] in ("embed_tokens", "lm_head") or path[-1] == "scale"


def is_trained_in_full(path: ParamPath) -> bool:
    """Everything but the embedding table trains (spec D.6)."""
    return path[1] != "embed_tokens"


# `config.model.train` -> which variables train
TRAINED: dict[str, Callable[[ParamPath], bool]] = {"lora": is_trained_with_lora, "full": is_trained_in_full}


def build(config: ml_collections.ConfigDict, workdir: Path) -> Stage:
    """Make a stage of the language model: pre-training with LoRA, full fine-tuning, or instruction tuning."""
    if config.model.train not in TRAINED:
        raise UserError(f"model.train is {config.model.train!r}, expected one of {', '.join(TRAINED)}.")
    prepared = _demo_data(config, workdir)
    vocabulary_dir = prepared.vocabulary if prepared else Path(config.data.vocabulary)
    vocabulary = Vocabulary.load(vocabulary_dir)
    sizes = _sizes(config, vocabulary)
    with_lora = config.model.train == "lora"
    spec = lora.LoraSpec(config.lora.rank, config.lora.alpha, config.lora.dropout) if with_lora else None
    model = Llama(
        sizes,
        precision=Precision("float32", config.precision.compute),
        remat=config.model.remat,
        lora=spec,
        attention=config.model.attention,
    )
    parts = prepared.parts(config.stage) if prepared else config.data.parts
    merged_dtype = config.precision.frozen if with_lora else "float32"
    described = {"rank": spec.rank, "alpha": spec.alpha, "dropout": spec.dropout} if spec else None
    trainable = TRAINED[config.model.train]
    return Stage(
        kind=KIND,
        model_config={
            "sizes": sizes.to_dict(),
            "lora": described,
            "image_tokenizer": _image_tokenizer(prepared, workdir),
        },
        files={name: vocabulary_dir / name for name in TOKENIZER_FILES if (vocabulary_dir / name).exists()},
        abstract=functools.partial(abstract, model),
        init=functools.partial(start, model, config.model.init, merged_dtype),
        trainable=trainable,
        loss=functools.partial(_loss, model, vocabulary, config.loss_chunk),
        batches=functools.partial(_batches, config, parts, vocabulary),
        batch_size=config.data.batch_size,
        row_spec=_row_spec(config.data.sequence_length),
        tokens_per_batch=config.data.batch_size * config.data.sequence_length,
        flops_per_token=_flops_per_token(model, trainable, config.data.sequence_length),
        flops_convention="6 per trained and 4 per frozen matmul parameter and token, causal attention",
        finish=_finish(prepared, config.stage),
    )


def _demo_data(config: ml_collections.ConfigDict, workdir: Path) -> Any:
    if not config.data.demo:
        return None
    from seed_jax.train import demo  # only the :tiny variants need it, and the inference side with it

    return demo.prepare(workdir / "demo", config.seed)


def _finish(prepared: Any, stage: str) -> Callable[[Tree, Path], None]:
    if prepared is None:
        return lambda variables, workdir: None
    from seed_jax.train import samples

    return functools.partial(samples.show, prepared, stage)


def _sizes(config: ml_collections.ConfigDict, vocabulary: Vocabulary) -> LlamaConfig:
    if config.model.init:
        _, stored = model_dir.read_config(config.model.init, KIND)
        return LlamaConfig.from_dict({**stored["sizes"], "vocab_size": vocabulary.size})
    known = {"seed_8b": LlamaConfig.seed_8b, "seed_14b": LlamaConfig.seed_14b}
    known["tiny"] = functools.partial(LlamaConfig.tiny, vocabulary.size)
    if config.model.sizes not in known:
        raise UserError(f"model.sizes is {config.model.sizes!r}, expected one of {', '.join(known)}.")
    sizes = known[config.model.sizes]()
    if sizes.vocab_size != vocabulary.size:
        raise UserError(
            f"data.vocabulary has {vocabulary.size} tokens, model.sizes={config.model.sizes} needs {sizes.vocab_size}."
        )
    return sizes


def _batches(
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


def _row_spec(length: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(row.shape[1:], row.dtype) for name, row in empty_batch(1, length).items()}


def _image_tokenizer(prepared: Any, workdir: Path) -> str | None:
    # Relative to the folder of config.json, so that a workdir can be moved.
    return str(Path("..") / prepared.image_tokenizer.relative_to(workdir)) if prepared else None


def _loss(
    model: Llama, vocabulary: Vocabulary, chunk: int, variables: Tree, batch: dict[str, Array], key: Key[Array, ""]
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
        split=(targets >= vocabulary.first_code) & (targets < vocabulary.first_code + vocabulary.num_codes),
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

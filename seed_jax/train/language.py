"""Stages that train the language model: next-token prediction over packed text and image codes.

`pretrain` trains LoRA adapters and, whole, embeddings, head and norms (spec D.1).
"""

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Key

from seed_jax import sharding
from seed_jax.checkpoint import model_dir
from seed_jax.data import templates
from seed_jax.data.fields import Renderer
from seed_jax.data.packing import empty_batch
from seed_jax.data.pipeline import packed_batches
from seed_jax.data.stream import Part
from seed_jax.data.vocab import Vocabulary
from seed_jax.errors import UserError
from seed_jax.losses import WeightedSum, next_token_loss
from seed_jax.models import lora
from seed_jax.models.llama import Llama, LlamaConfig
from seed_jax.precision import Precision
from seed_jax.train import flops
from seed_jax.train.stages import Batches, LossOutput, ParamPath, Stage

Tree = dict[str, Any]
KIND = "llama"


def build(config: ml_collections.ConfigDict, workdir: Path) -> Stage:
    """Make the stage `pretrain`: LoRA with trained embeddings, head and norms."""
    prepared = _demo_data(config, workdir)
    vocabulary_dir = prepared.vocabulary if prepared else Path(config.data.vocabulary)
    vocabulary = Vocabulary.load(vocabulary_dir)
    sizes = _sizes(config, vocabulary)
    spec = lora.LoraSpec(config.lora.rank, config.lora.alpha, config.lora.dropout)
    model = Llama(
        sizes,
        precision=Precision("float32", config.precision.compute),
        remat=config.model.remat,
        lora=spec,
        attention=config.model.attention,
    )
    parts = prepared.parts if prepared else config.data.parts
    image_tokenizer = _image_tokenizer(prepared, workdir)
    files = ("tokenizer.model", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json")
    return Stage(
        kind=KIND,
        model_config={
            "sizes": sizes.to_dict(),
            "lora": {"rank": spec.rank, "alpha": spec.alpha, "dropout": spec.dropout},
            "image_tokenizer": image_tokenizer,
        },
        files={name: vocabulary_dir / name for name in files if (vocabulary_dir / name).exists()},
        abstract=functools.partial(_abstract, model),
        init=functools.partial(_init, config, model, vocabulary),
        trainable=is_trained_with_lora,
        loss=functools.partial(_loss, model, vocabulary, config.loss_chunk),
        batches=functools.partial(_batches, config, parts, vocabulary),
        batch_size=config.data.batch_size,
        row_spec=_row_spec(config.data.sequence_length),
        tokens_per_batch=config.data.batch_size * config.data.sequence_length,
        flops_per_token=_flops_per_token(sizes, spec, config.data.sequence_length),
        flops_convention="6 per trained and 4 per frozen matmul parameter and token, causal attention",
        finish=_finish(prepared),
    )


def _demo_data(config: ml_collections.ConfigDict, workdir: Path) -> Any:
    if not config.data.demo:
        return None
    from seed_jax.train import demo  # only the :tiny variants need it, and the inference side with it

    return demo.prepare(workdir / "demo", config.seed)


def _finish(prepared: Any) -> Callable[[Tree, Path], None]:
    if prepared is None:
        return lambda variables, workdir: None
    from seed_jax.train import samples

    return functools.partial(samples.show, prepared)


def is_trained_with_lora(path: ParamPath) -> bool:
    """Adapters, embeddings, head and norms train; the projections under the adapters are frozen (spec D.1)."""
    return path[0] == "lora" or path[1] in ("embed_tokens", "lm_head") or path[-1] == "scale"


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
    rendered = [
        Part(part["path"], Renderer(templates.make(part["task"], part["params"], vocabulary)), part["weight"])
        for part in parts
    ]
    return iter(
        packed_batches(
            rendered,
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


def _abstract(model: Llama) -> Tree:
    """Return boxed shapes of {"params", "lora"}."""
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    return {"params": params, "lora": lora.abstract(params, model.lora)}


def _init(config: ml_collections.ConfigDict, model: Llama, vocabulary: Vocabulary, key: Key[Array, ""], cut: Tree):
    """Return variables: loaded from `model.init` or fresh; adapters are always fresh."""
    key_params, key_lora, key_rows = jax.random.split(key, 3)

    def fresh_params(key):
        return sharding.unbox(model.init(key, jnp.zeros((1, 8), jnp.int32))["params"])

    if config.model.init:
        params = _load(config.model.init, model, vocabulary, key_rows, cut["params"])
    else:
        logging.info("model.init is empty: the language model starts from random weights.")
        params = jax.jit(fresh_params, out_shardings=cut["params"])(key_params)
    adapters = jax.jit(lambda params, key: lora.init(params, model.lora, key), out_shardings=cut["lora"])(
        params, key_lora
    )
    return {"params": params, "lora": adapters}


def _load(directory: str, model: Llama, vocabulary: Vocabulary, key: Key[Array, ""], cut: Tree) -> Tree:
    """Read parameters; a base model without image tokens gets rows drawn from N(0, 0.02) for them (spec D.1)."""
    _, stored = model_dir.read_config(directory, KIND)
    rows = stored["sizes"]["vocab_size"]
    if rows > vocabulary.size:
        raise UserError(
            f"{directory} has {rows} tokens but the vocabulary only {vocabulary.size}: use its own vocabulary."
        )
    if rows == vocabulary.size:
        return model_dir.load(directory, KIND, shardings=cut).params
    params = model_dir.load(directory, KIND).params
    logging.info(
        "%s has %d tokens: rows %d to %d are drawn from N(0, 0.02).", directory, rows, rows, vocabulary.size - 1
    )
    flat = flatten_dict(params)
    key_embed, key_head = jax.random.split(key)
    embed, head = ("embed_tokens", "embedding"), ("lm_head", "kernel")
    flat[embed] = grow_rows(flat[embed], rows, vocabulary.size, model.config.padded_vocab_size, key_embed)
    flat[head] = grow_rows(flat[head].T, rows, vocabulary.size, model.config.padded_vocab_size, key_head).T
    return jax.tree.map(jax.device_put, unflatten_dict(flat), cut)


def grow_rows(table: Array, rows: int, wanted: int, padded: int, key: Key[Array, ""], deviation: float = 0.02) -> Array:
    """Return a [padded, D] table: the first `rows` of `table`, then normal rows up to `wanted`, then zeros."""
    fresh = deviation * jax.random.normal(key, (wanted - rows, table.shape[1]), jnp.float32)
    padding = jnp.zeros((padded - wanted, table.shape[1]), table.dtype)
    return jnp.concatenate([table[:rows], fresh.astype(table.dtype), padding])


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


def _flops_per_token(sizes: LlamaConfig, spec: lora.LoraSpec, length: int) -> float:
    model = Llama(sizes, precision=Precision(), lora=spec)
    flat = flatten_dict(sharding.unbox(_abstract(model)))
    trained = sum(x.size for path, x in flat.items() if path[0] == "lora" or path[1] == "lm_head")
    frozen = sum(
        x.size for path, x in flat.items() if path[0] == "params" and path[-1] == "kernel" and path[1] == "layers"
    )
    return flops.transformer_flops_per_token(
        trained_matmul=trained, frozen_matmul=frozen, layers=sizes.num_layers, hidden=sizes.hidden_size, length=length
    )

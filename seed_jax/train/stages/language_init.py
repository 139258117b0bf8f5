"""Initialize a language model: randomly, or from an imported base model or another run's workdir."""

import functools
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from seed_jax import sharding
from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import LANGUAGE_MODELS
from seed_jax.errors import UserError
from seed_jax.models.language_models import abstract_params, model_class, read_sizes
from seed_jax.models.nn import lora
from seed_jax.models.nn.decoder_only import DecoderOnly, DecoderOnlyConfig
from seed_jax.precision import as_dtype
from seed_jax.typing import Tree


def abstract_variables(model: DecoderOnly) -> Tree:
    """Return the boxed shapes of {"params"} and, for a model with adapters, {"lora"}."""
    params = abstract_params(model.config, model.precision, scan_layers=model.scan_layers)
    return {"params": params} | ({"lora": lora.abstract(params, model.lora)} if model.lora else {})


def init_variables(model: DecoderOnly, init: str, merged_dtype: str, key: Key[Array, ""], shardings: Tree) -> Tree:
    """Return the initial variables; adapters, and what an OPT lacks of SEED-OPT, are always fresh.

    Args:
        model: the language model.
        init: model directory or workdir of another run, whose adapters are merged; "" for random weights.
        merged_dtype: dtype of kernels that adapters were merged into.
        key: for whatever is random.
        shardings: like `abstract_variables(model)`.
    """
    key_params, key_lora, key_rows = jax.random.split(key, 3)
    if init:
        params = _load(Path(init), model.config, merged_dtype, key_rows, shardings["params"])
    else:
        logging.info("model.init is empty: the language model starts from random weights.")

        def init_params(key: Key[Array, ""]) -> Tree:
            return sharding.unbox(model.init(key, jnp.zeros((1, 8), jnp.int32))["params"])

        params = sharding.jit_init(init_params, out_shardings=shardings["params"])(key_params)
    spec = model.lora
    if spec is None:
        return {"params": params}
    init_adapters = jax.jit(lambda params, key: lora.init(params, spec, key), out_shardings=shardings["lora"])
    return {"params": params, "lora": init_adapters(params, key_lora)}


def _load(directory: Path, target: DecoderOnlyConfig, merged_dtype: str, key: Key[Array, ""], shardings: Tree) -> Tree:
    """Read parameters into their shardings, merge adapters, and extend a vocabulary that has no image tokens yet."""
    _, stored = model_dir.read_config(directory, LANGUAGE_MODELS)
    source = read_sizes(stored["kind"], stored["sizes"], str(directory))
    if type(source) is not type(target):
        raise UserError(
            f"{directory} holds a model of kind {stored['kind']!r}, of another architecture than the run's."
        )
    if source.vocab_size > target.vocab_size:
        raise UserError(
            f"{directory} has {source.vocab_size} tokens but the vocabulary only {target.vocab_size}: "
            "use the model's own vocabulary."
        )
    targets = model_class(source).lora_targets
    spec = lora.read_spec(stored["lora"], str(directory), targets) if stored.get("lora") else None
    tree = abstract_variables(model_class(source)(source, lora=spec))
    # The checkpoint of a run holds collections, an imported model the parameters alone.
    tree = tree["params"] if (directory / model_dir.PARAMS).is_dir() else tree
    mesh = jax.tree.leaves(shardings)[0].mesh
    loaded = model_dir.load(directory, LANGUAGE_MODELS, shardings=sharding.tree_shardings(tree, mesh)).params
    params, adapters = (loaded["params"], loaded.get("lora")) if "params" in loaded else (loaded, None)
    extends = source.vocab_size < target.vocab_size
    if adapters:
        logging.info("Merging the adapters of %s into its weights.", directory)
    if extends:
        first, last = source.vocab_size, target.vocab_size - 1
        logging.info("%s has %d tokens: rows %d to %d are drawn from N(0, 0.02).", directory, first, first, last)

    def merge_and_extend(params: Tree, adapters: Tree | None, key: Key[Array, ""]) -> Tree:
        if adapters and spec:
            params = _merge(params, adapters, spec, merged_dtype)
        params = _extend_vocabulary(params, source, target, key) if extends else params
        return {**_fresh(target, tuple(shardings.keys() - params.keys()), key), **params}

    return jax.jit(merge_and_extend, out_shardings=shardings)(params, adapters, key)


def _fresh(config: DecoderOnlyConfig, names: tuple[str, ...], key: Key[Array, ""]) -> Tree:
    """Return random parameters of the modules that the loaded model does not have."""
    if not names:
        return {}
    params = sharding.unbox(model_class(config)(config).init(key, jnp.zeros((1, 8), jnp.int32))["params"])
    return {name: params[name] for name in names}


def _merge(params: Tree, adapters: Tree, spec: lora.LoraSpec, merged_dtype: str) -> Tree:
    layers = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params["layers"])
    merged = lora.merge({**params, "layers": layers}, adapters, spec)
    return {**merged, "layers": jax.tree.map(lambda leaf: leaf.astype(as_dtype(merged_dtype)), merged["layers"])}


def _extend_vocabulary(params: Tree, source: DecoderOnlyConfig, target: DecoderOnlyConfig, key: Key[Array, ""]) -> Tree:
    key_embed, key_head = jax.random.split(key)
    extend = functools.partial(
        extend_rows, rows=source.vocab_size, new_rows=target.vocab_size, padded_rows=target.padded_vocab_size
    )
    embedding = extend(params["embed_tokens"]["embedding"], key=key_embed)
    extended = {**params, "embed_tokens": {"embedding": embedding}}
    if "lm_head" in params:  # otherwise the head is tied to the embeddings
        extended["lm_head"] = {"kernel": extend(params["lm_head"]["kernel"].T, key=key_head).T}
    return extended


def extend_rows(
    table: Float[Array, "V D"], *, rows: int, new_rows: int, padded_rows: int, key: Key[Array, ""]
) -> Float[Array, "P D"]:
    """Return the first `rows` of `table`, rows drawn from N(0, 0.02) up to `new_rows` (spec D.1), then zeros."""
    fresh = 0.02 * jax.random.normal(key, (new_rows - rows, table.shape[1]), jnp.float32)
    padding = jnp.zeros((padded_rows - new_rows, table.shape[1]), table.dtype)
    return jnp.concatenate([table[:rows], fresh.astype(table.dtype), padding])

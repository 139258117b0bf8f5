"""Where a language model's training starts: random weights, an imported base model, or another run's workdir."""

import functools
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from seed_jax import sharding
from seed_jax.checkpoint import model_dir
from seed_jax.errors import UserError
from seed_jax.models.llama.model import Llama, LlamaConfig
from seed_jax.models.nn import lora
from seed_jax.precision import as_dtype

Tree = dict[str, Any]
KIND = "llama"


def abstract(model: Llama) -> Tree:
    """Return boxed shapes of {"params"} and, for a model with adapters, {"lora"}."""
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    # The key is made inside: the devices of the mesh may exist in a plan only.
    params = jax.eval_shape(lambda tokens: model.init(jax.random.key(0), tokens), tokens)["params"]
    return {"params": params} | ({"lora": lora.abstract(params, model.lora)} if model.lora else {})


def start(model: Llama, init: str, merged_dtype: str, key: Key[Array, ""], cut: Tree) -> Tree:
    """Return the variables to begin with; adapters are always fresh.

    Args:
        init: a model directory or the workdir of another run, whose adapters are merged; "" for random weights.
        merged_dtype: number format of kernels that adapters were merged into.
        cut: shardings like `abstract(model)`.
    """
    key_params, key_lora, key_rows = jax.random.split(key, 3)
    if init:
        params = _load(Path(init), model.config, merged_dtype, key_rows, cut["params"])
    else:
        logging.info("model.init is empty: the language model starts from random weights.")
        params = jax.jit(functools.partial(_fresh, model), out_shardings=cut["params"])(key_params)
    if model.lora is None:
        return {"params": params}
    make_adapters = jax.jit(lambda params, key: lora.init(params, model.lora, key), out_shardings=cut["lora"])
    return {"params": params, "lora": make_adapters(params, key_lora)}


def _fresh(model: Llama, key: Key[Array, ""]) -> Tree:
    return sharding.unbox(model.init(key, jnp.zeros((1, 8), jnp.int32))["params"])


def _load(directory: Path, wanted: LlamaConfig, merged_dtype: str, key: Key[Array, ""], cut: Tree) -> Tree:
    """Read parameters into their shardings, merge adapters, and grow a vocabulary that has no image tokens yet."""
    _, stored = model_dir.read_config(directory, KIND)
    sizes = LlamaConfig.from_dict(stored["sizes"])
    if sizes.vocab_size > wanted.vocab_size:
        raise UserError(
            f"{directory} has {sizes.vocab_size} tokens but the vocabulary only {wanted.vocab_size}: "
            "use the model's own vocabulary."
        )
    spec = lora.LoraSpec(**stored["lora"]) if stored.get("lora") else None
    tree = abstract(Llama(sizes, lora=spec))
    # The checkpoint of a run holds collections, an imported model the parameters alone.
    tree = tree["params"] if (directory / model_dir.PARAMS).is_dir() else tree
    found = model_dir.load(
        directory, KIND, shardings=sharding.tree_shardings(tree, jax.tree.leaves(cut)[0].mesh)
    ).params
    params, adapters = (found["params"], found.get("lora")) if "params" in found else (found, None)
    grows = sizes.vocab_size < wanted.vocab_size
    if adapters:
        logging.info("The adapters of %s are merged into its weights.", directory)
    if grows:
        first, last = sizes.vocab_size, wanted.vocab_size - 1
        logging.info("%s has %d tokens: rows %d to %d are drawn from N(0, 0.02).", directory, first, first, last)

    def settle(params: Tree, adapters: Tree | None, key: Key[Array, ""]) -> Tree:
        params = _merge(params, adapters, spec, merged_dtype) if adapters else params
        return _grow(params, sizes, wanted, key) if grows else params

    return jax.jit(settle, out_shardings=cut)(params, adapters, key)


def _merge(params: Tree, adapters: Tree, spec: lora.LoraSpec, merged_dtype: str) -> Tree:
    layers = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params["layers"])
    merged = lora.merge({**params, "layers": layers}, adapters, spec)
    return {**merged, "layers": jax.tree.map(lambda leaf: leaf.astype(as_dtype(merged_dtype)), merged["layers"])}


def _grow(params: Tree, sizes: LlamaConfig, wanted: LlamaConfig, key: Key[Array, ""]) -> Tree:
    key_embed, key_head = jax.random.split(key)
    grow = functools.partial(
        grow_rows, rows=sizes.vocab_size, wanted=wanted.vocab_size, padded=wanted.padded_vocab_size
    )
    embedding = grow(params["embed_tokens"]["embedding"], key=key_embed)
    head = grow(params["lm_head"]["kernel"].T, key=key_head).T
    return {**params, "embed_tokens": {"embedding": embedding}, "lm_head": {"kernel": head}}


def grow_rows(
    table: Float[Array, "V D"], *, rows: int, wanted: int, padded: int, key: Key[Array, ""]
) -> Float[Array, "P D"]:
    """Return the first `rows` of `table`, then rows drawn from N(0, 0.02) up to `wanted` (spec D.1), then zeros."""
    fresh = 0.02 * jax.random.normal(key, (wanted - rows, table.shape[1]), jnp.float32)
    padding = jnp.zeros((padded - wanted, table.shape[1]), table.dtype)
    return jnp.concatenate([table[:rows], fresh.astype(table.dtype), padding])

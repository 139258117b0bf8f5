"""Initialize stage II: architecture and weights of stage I, of another tokenizer, or of official files."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from seed_jax import images, sharding
from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.convert.key_table import Entry
from seed_jax.convert.tokenizer.key_table import (
    SHARED_MODULES,
    key_table,
    retrieval_table,
    text_branch_table,
    with_path_prefix,
)
from seed_jax.errors import UserError
from seed_jax.models.tokenizer.image_text import ImageTextConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig
from seed_jax.models.tokenizer.text_branch import TextBranchConfig
from seed_jax.train.config import CodebookStageConfig
from seed_jax.train.config.tokenizer import InitFromConfig
from seed_jax.train.stage import Batches
from seed_jax.train.stages import warm_start
from seed_jax.train.stages.codebook.model import RETRIEVAL, CodebookModel, CodebookSizes
from seed_jax.typing import Tree


def architecture(config: CodebookStageConfig, vocab_size: int) -> CodebookSizes:
    """Return the sizes: from `init_from.model` as far as it has them, else those that `model.config` names.

    Args:
        config: the run's configuration.
        vocab_size: of the captions' vocabulary, for a text side that is read from official files.
    """
    init_from, dropout = config.init_from, config.model.dropout
    has_model = bool(init_from.model) and Path(init_from.model).exists()
    sizes = _stored(config) if has_model else CodebookSizes(_named(config))
    if sizes.tokenizer.predicts_text != config.model.predicts_text:
        stored, wanted = (
            ("SEED-1", "an image embedding") if sizes.tokenizer.predicts_text else ("SEED-2", "text states")
        )
        raise UserError(
            f"init_from.model {init_from.model} is a {stored} tokenizer, but model.head {config.model.head!r} predicts "
            f"{wanted}: start from a stage I model, or set model.head to {sizes.tokenizer.head!r}."
        )
    # SEED-1's released weights lack the blocks that reconstruct causal embeddings: they start from random weights.
    sizes = dataclasses.replace(sizes, tokenizer=dataclasses.replace(sizes.tokenizer, reconstruction=True))
    if not sizes.joint_width and (init_from.quantizer or _has_extras(init_from.model)):
        # Official files hold the text side, which makes retrieval possible.
        qformer = dataclasses.replace(sizes.tokenizer.qformer, vocab_size=vocab_size)
        tokenizer = dataclasses.replace(sizes.tokenizer, qformer=qformer)
        sizes = dataclasses.replace(sizes, tokenizer=tokenizer, joint_width=config.model.joint_width)
    reverse = sizes.tokenizer.reverse
    if reverse is not None:
        reverse = dataclasses.replace(reverse, dropout=dropout)
    qformer = dataclasses.replace(sizes.tokenizer.qformer, dropout=dropout)
    tokenizer = dataclasses.replace(sizes.tokenizer, qformer=qformer, reverse=reverse)
    branch = None
    if config.model.text_branch:
        branch = sizes.text_branch or _text_branch(config, tokenizer)
    return dataclasses.replace(sizes, tokenizer=tokenizer, text_branch=branch)


def _named(config: CodebookStageConfig) -> SeedTokenizerConfig:
    sizes = getattr(SeedTokenizerConfig, config.model.config)(config.model.head)
    return dataclasses.replace(sizes, num_codes=config.model.num_codes or sizes.num_codes)


def _stored(config: CodebookStageConfig) -> CodebookSizes:
    folder, stored = model_dir.read_config(config.init_from.model)
    where = str(folder / model_dir.CONFIG)
    if stored["kind"] != ModelKind.QFORMER:
        sizes = CodebookSizes.from_dict(stored, where)
        if config.model.num_codes not in (0, sizes.tokenizer.num_codes):
            raise UserError(
                f"{where} has a codebook of {sizes.tokenizer.num_codes} codes, but model.num_codes is "
                f"{config.model.num_codes}: set it to 0 to keep the codebook, or start from a stage I model."
            )
        return sizes
    encoder = ImageTextConfig.from_dict(stored["sizes"], where)
    tokenizer = dataclasses.replace(
        _named(config), vit=encoder.vit, qformer=encoder.qformer, ln_vision_epsilon=encoder.ln_vision_epsilon
    )
    return CodebookSizes(tokenizer, encoder.joint_width)


def _text_branch(config: CodebookStageConfig, tokenizer: SeedTokenizerConfig) -> TextBranchConfig:
    if config.model.config == "full":
        return TextBranchConfig()
    width = tokenizer.decoder.width
    reverse = dataclasses.replace(
        tokenizer.qformer, num_queries=77, causal=False, memory_width=width, vocab_size=0, max_positions=128
    )
    return TextBranchConfig(tokenizer.codes_per_image, tokenizer.decoder, reverse, state_width=width)


def load_weights(init_from: InitFromConfig, sizes: CodebookSizes, variables: Tree) -> Tree:
    """Load the weights that `init_from` names over fresh variables."""
    if init_from.model:
        folder, stored = model_dir.read_config(init_from.model)
        loaded = warm_start.open_collections(init_from.model, stored["kind"])
        if stored["kind"] == ModelKind.QFORMER:
            params = loaded["params"]
            names = {"params": SHARED_MODULES, "retrieval": RETRIEVAL}
            loaded = {collection: warm_start.select(params, modules) for collection, modules in names.items()}
        else:
            flat = warm_start.load_extras(folder, _official_table(sizes), _flatten_collections(variables))
            variables = _restore_collections(flat)
        variables = warm_start.overlay(variables, warm_start.select(loaded, tuple(variables)), init_from.model)
    flat = warm_start.load_foreign(init_from, _official_table(sizes), _flatten_collections(variables))
    return _restore_collections(flat)


def _has_extras(directory: str) -> bool:
    return bool(directory) and (Path(directory) / warm_start.EXTRAS_FILE).is_file()


def _official_table(sizes: CodebookSizes) -> list[Entry]:
    """Return the official names of the tree that `_flatten_collections` makes."""
    table = key_table(sizes.tokenizer)
    if sizes.joint_width:
        table += with_path_prefix("retrieval", retrieval_table())
    if sizes.text_branch is not None:
        table += with_path_prefix("text_branch", text_branch_table(sizes.text_branch))
    return table


def _flatten_collections(variables: Tree) -> Tree:
    return {**variables["params"], **{name: tree for name, tree in variables.items() if name != "params"}}


def _restore_collections(tree: Tree) -> Tree:
    others = {name: tree[name] for name in ("retrieval", "text_branch") if name in tree}
    return {"params": {name: leaf for name, leaf in tree.items() if name not in others}, **others}


def collect_vectors(
    count: int, batch_size: int, model: CodebookModel, variables: Tree, batches: Batches
) -> Float[Array, "N C"]:
    """Return at least `count` pre-quantization vectors of the first images, for k-means."""
    mesh = jax.sharding.get_mesh()
    batch_sharding = sharding.batch_sharding(mesh)

    def encode(variables: Tree, image: Array) -> Array:
        encoded: Any = model.tokenizer.apply({"params": variables["params"]}, images.normalize(image), method="encode")
        return encoded.prequant

    encode = jax.jit(encode, out_shardings=sharding.replicated_sharding(mesh))
    collected: list[np.ndarray] = []
    while sum(map(len, collected)) < count:
        image = sharding.shard_batch({"image": next(batches)["image"]}, batch_sharding, batch_size)["image"]
        vectors = np.asarray(encode(variables, image).addressable_data(0))
        collected.append(vectors.reshape(-1, model.sizes.tokenizer.code_width))
    batches.close()
    return jnp.concatenate([jnp.asarray(vectors) for vectors in collected])

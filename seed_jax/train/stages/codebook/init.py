"""Where stage II begins: sizes and weights of stage I, of an image tokenizer to go on from, or of official files."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float

from seed_jax import images, sharding
from seed_jax.checkpoint import model_dir
from seed_jax.convert.key_table import Entry
from seed_jax.convert.tokenizer.key_table import below, key_table, retrieval_table, text_branch_table
from seed_jax.errors import UserError
from seed_jax.models.tokenizer.config import NAMED_SIZES
from seed_jax.models.tokenizer.image_text import ImageTextConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig
from seed_jax.models.tokenizer.text_branch import TextBranchConfig
from seed_jax.train.stages import warm_start
from seed_jax.train.stages.codebook.model import RETRIEVAL, SHARED, CodebookModel, CodebookSizes
from seed_jax.train.stages.pair_data import PairData

Tree = dict[str, Any]
_STAGE_I = "seed_qformer"


def sizes(config: ml_collections.ConfigDict, vocab_size: int) -> CodebookSizes:
    """Return the sizes: from `start.init` as far as that has them, else those that `config.model` names.

    Args:
        vocab_size: of the captions' vocabulary, for a text side that is read from official files.
    """
    found = _stored(config) if config.start.init else CodebookSizes(_named(config))
    if not found.joint_width and (config.start.quantizer or _has_extras(config.start.init)):
        # Official files hold the text side; it makes retrieval possible.
        qformer = dataclasses.replace(found.tokenizer.qformer, vocab_size=vocab_size)
        tokenizer = dataclasses.replace(found.tokenizer, qformer=qformer)
        found = dataclasses.replace(found, tokenizer=tokenizer, joint_width=config.model.joint_width)
    qformer = dataclasses.replace(found.tokenizer.qformer, dropout=config.model.dropout)
    reverse = found.tokenizer.reverse
    if reverse is not None:
        reverse = dataclasses.replace(reverse, dropout=config.model.dropout)
    tokenizer = dataclasses.replace(found.tokenizer, qformer=qformer, reverse=reverse)
    branch = None
    if config.model.text_branch:
        branch = found.text_branch or _branch_sizes(config, tokenizer)
    return dataclasses.replace(found, tokenizer=tokenizer, text_branch=branch)


def _named(config: ml_collections.ConfigDict) -> SeedTokenizerConfig:
    if config.model.sizes not in NAMED_SIZES:
        raise UserError(f"model.sizes is {config.model.sizes!r}, expected {' or '.join(NAMED_SIZES)}.")
    return getattr(SeedTokenizerConfig, config.model.sizes)(config.model.head)


def _stored(config: ml_collections.ConfigDict) -> CodebookSizes:
    folder, stored = model_dir.read_config(config.start.init)
    where = str(folder / model_dir.CONFIG)
    if stored["kind"] != _STAGE_I:
        return CodebookSizes.from_dict(stored, where)
    encoder = ImageTextConfig.from_dict(stored["sizes"], where)
    tokenizer = dataclasses.replace(
        _named(config), vit=encoder.vit, qformer=encoder.qformer, ln_vision_epsilon=encoder.ln_vision_epsilon
    )
    return CodebookSizes(tokenizer, encoder.joint_width)


def _branch_sizes(config: ml_collections.ConfigDict, tokenizer: SeedTokenizerConfig) -> TextBranchConfig:
    if config.model.sizes == "full":
        return TextBranchConfig()
    width = tokenizer.decoder.width
    reverse = dataclasses.replace(
        tokenizer.qformer, num_queries=77, causal=False, memory_width=width, vocab_size=0, max_positions=128
    )
    return TextBranchConfig(tokenizer.codes_per_image, tokenizer.decoder, reverse, state_width=width)


def load(config: ml_collections.ConfigDict, sizes: CodebookSizes, variables: Tree) -> Tree:
    """Put what `config.start` names over fresh variables."""
    if config.start.init:
        folder, stored = model_dir.read_config(config.start.init)
        loaded = warm_start.load_collections(config.start.init, stored["kind"])
        if stored["kind"] == _STAGE_I:
            params = loaded["params"]
            loaded = {"params": warm_start.only(params, SHARED), "retrieval": warm_start.only(params, RETRIEVAL)}
        else:
            variables = _apart(warm_start.read_extras(folder, _table(sizes), _together(variables)))
        wanted = warm_start.only(loaded, tuple(variables))
        variables = warm_start.overlay(variables, wanted, str(config.start.init))
    return _apart(warm_start.read_foreign(config, _table(sizes), _together(variables)))


def _has_extras(directory: str) -> bool:
    return bool(directory) and (Path(directory) / warm_start.EXTRAS_FILE).is_file()


def _table(sizes: CodebookSizes) -> list[Entry]:
    """Return the official names of the tree that `_together` makes."""
    table = key_table(sizes.tokenizer)
    if sizes.joint_width:
        table += below("retrieval", retrieval_table())
    if sizes.text_branch is not None:
        table += below("text_branch", text_branch_table(sizes.text_branch))
    return table


def _together(variables: Tree) -> Tree:
    return {**variables["params"], **{name: tree for name, tree in variables.items() if name != "params"}}


def _apart(tree: Tree) -> Tree:
    others = {name: tree[name] for name in ("retrieval", "text_branch") if name in tree}
    return {"params": {name: leaf for name, leaf in tree.items() if name not in others}, **others}


def first_vectors(
    count: int, batch_size: int, model: CodebookModel, variables: Tree, data: PairData
) -> Float[Array, "N C"]:
    """Return what the first pictures are quantised from: at least `count` vectors."""
    mesh = jax.sharding.get_mesh()
    cut = sharding.batch_sharding(mesh)

    def encode(variables: Tree, image: Array) -> Array:
        apply = model.tokenizer.apply
        return apply({"params": variables["params"]}, images.normalize(image), method="encode").prequant

    encode = jax.jit(encode, out_shardings=sharding.replicated(mesh))
    batches = data.make_batches(sharding.local_rows(cut, batch_size))
    found = []
    while sum(map(len, found)) < count:
        image = sharding.place({"image": next(batches)["image"]}, cut, batch_size)["image"]
        vectors = np.asarray(encode(variables, image).addressable_data(0))
        found.append(vectors.reshape(-1, model.sizes.tokenizer.code_width))
    batches.close()
    return jnp.concatenate([jnp.asarray(part) for part in found])

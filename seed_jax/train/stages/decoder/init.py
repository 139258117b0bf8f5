"""Where the decoder's training starts: an imported decoder, another run's workdir, or nothing."""

import logging
from pathlib import Path
from typing import Any

import jax
import ml_collections
from jaxtyping import Array, Key

from seed_jax import sharding
from seed_jax.checkpoint import model_dir
from seed_jax.errors import UserError
from seed_jax.inference.drawing.drawer import drawing_params
from seed_jax.models.diffusion import Unclip, UnclipConfig
from seed_jax.train.optimizer import COLLECTION, first_averages
from seed_jax.train.stages import warm_start
from seed_jax.train.stages.decoder.embedding_source import EmbeddingSource

Tree = dict[str, Any]
KIND = "unclip"
FILES = ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")  # of the prompt's vocabulary


def sizes(config: ml_collections.ConfigDict, embedding_width: int) -> tuple[UnclipConfig, dict[str, Path]]:
    """Return the decoder's sizes, and the vocabulary's files that lie beside the weights it starts from."""
    files = {}
    if config.model.init:
        folder, stored = model_dir.read_config(config.model.init, KIND)
        found = UnclipConfig.from_dict(stored["sizes"], str(folder / model_dir.CONFIG))
        files = {name: folder / name for name in FILES if (folder / name).is_file()}
    elif config.model.sizes == "full":
        found = UnclipConfig.full()
    elif config.model.sizes in ("small", "tiny"):
        found = getattr(UnclipConfig, config.model.sizes)(embedding_width)
    else:
        raise UserError(f"model.sizes is {config.model.sizes!r}, expected full or small or tiny.")
    if found.embedding_width != embedding_width:
        raise UserError(
            f"The decoder draws from embeddings of width {found.embedding_width}, what config.source names gives "
            f"{embedding_width}: they do not belong together."
        )
    return found, files


def abstract(unclip: Unclip, source: EmbeddingSource, trained: tuple[str, ...]) -> Tree:
    """Return boxed shapes of every collection."""
    params = jax.eval_shape(unclip.init, jax.random.key(0))
    averages = jax.eval_shape(first_averages, {part: params[part] for part in trained})
    return {"params": params, COLLECTION: averages, "source": source.abstract()}


def start(
    config: ml_collections.ConfigDict, unclip: Unclip, source: EmbeddingSource, key: Key[Array, ""], cut: Tree
) -> Tree:
    """Return variables: fresh or loaded, the averages equal to the parameters."""
    key_params, key_source = jax.random.split(key)
    fresh = jax.jit(lambda key: sharding.unbox(unclip.init(key)), out_shardings=cut["params"])
    if config.model.init:
        stored = drawing_params(_opened(config.model.init))
        model_dir.check_tree(stored, jax.eval_shape(lambda: sharding.unbox(unclip.init(key))), config.model.init)
        params = jax.tree.map(lambda leaf, to: jax.device_put(leaf[...], to), stored, cut["params"])
    else:
        logging.info("model.init is empty: the decoder starts from random weights.")
        params = fresh(key_params)
    trained = [part for part in cut[COLLECTION] if part != "updates"]
    averages = jax.jit(first_averages, out_shardings=cut[COLLECTION])({part: params[part] for part in trained})
    return {"params": params, COLLECTION: averages, "source": source.init(key_source, cut["source"])}


def _opened(directory: str) -> Tree:
    """Open a model directory's parameters, or a workdir's collections; arrays are read when they are taken."""
    found = warm_start.load_collections(directory, KIND)
    return found if COLLECTION in found else found["params"]

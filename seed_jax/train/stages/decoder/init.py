"""Initialize the decoder: from an imported decoder, another run's workdir, or randomly."""

import logging
from pathlib import Path

import jax
from jaxtyping import Array, Key

from seed_jax import sharding
from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.errors import UserError
from seed_jax.inference.drawing.drawer import decoder_params
from seed_jax.models.diffusion import Unclip, UnclipConfig
from seed_jax.train.config.decoder import DecoderModelConfig
from seed_jax.train.optimizer import EMA, init_ema
from seed_jax.train.stages import warm_start
from seed_jax.train.stages.decoder.embedding_source import EmbeddingSource
from seed_jax.typing import Tree

VOCABULARY_FILES = ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")


def architecture(config: DecoderModelConfig, embedding_width: int) -> tuple[UnclipConfig, dict[str, Path]]:
    """Return the decoder's architecture, and the files of its prompt vocabulary.

    Args:
        config: options of the decoder.
        embedding_width: of the embeddings it is trained on.
    """
    files = {}
    if config.init and Path(config.init).exists():
        folder, stored = model_dir.read_config(config.init, ModelKind.UNCLIP)
        sizes = UnclipConfig.from_dict(stored["sizes"], str(folder / model_dir.CONFIG))
        files = {name: folder / name for name in VOCABULARY_FILES if (folder / name).is_file()}
    elif config.config == "full":
        sizes = UnclipConfig.full()
    else:
        sizes = getattr(UnclipConfig, config.config)(embedding_width)
    if sizes.embedding_width != embedding_width:
        raise UserError(
            f"The decoder is conditioned on embeddings of width {sizes.embedding_width}, the model that `source` names "
            f"gives {embedding_width}: they do not belong together."
        )
    return sizes, files


def abstract_variables(unclip: Unclip, source: EmbeddingSource, trained: tuple[str, ...]) -> Tree:
    """Return boxed shapes of every collection."""
    params = jax.eval_shape(lambda: unclip.init(jax.random.key(0)))
    averages = jax.eval_shape(init_ema, {part: params[part] for part in trained})
    return {"params": params, EMA: averages, "source": source.abstract()}


def init_variables(
    model_init: str, unclip: Unclip, source: EmbeddingSource, key: Key[Array, ""], shardings: Tree
) -> Tree:
    """Return fresh or loaded variables; the moving averages start at the parameters.

    Args:
        model_init: model directory or workdir; "" for random weights.
        unclip: the decoder.
        source: the model that makes the embeddings.
        key: for whatever is random.
        shardings: of every collection.
    """
    key_params, key_source = jax.random.split(key)
    if model_init:
        stored = decoder_params(_open(model_init))
        model_dir.check_tree(stored, jax.eval_shape(lambda: sharding.unbox(unclip.init(key))), model_init)
        params = jax.tree.map(lambda leaf, target: jax.device_put(leaf[...], target), stored, shardings["params"])
    else:
        logging.info("model.init is empty: the decoder starts from random weights.")
        init = sharding.jit_init(lambda key: sharding.unbox(unclip.init(key)), out_shardings=shardings["params"])
        params = init(key_params)
    trained = [part for part in shardings[EMA] if part != "updates"]
    averages = jax.jit(init_ema, out_shardings=shardings[EMA])({part: params[part] for part in trained})
    return {"params": params, EMA: averages, "source": source.init(key_source, shardings["source"])}


def _open(directory: str) -> Tree:
    """Open a model directory's parameters, or a workdir's collections; arrays are read when they are indexed."""
    collections = warm_start.open_collections(directory, ModelKind.UNCLIP)
    return collections if EMA in collections else collections["params"]

"""Initialize the decoder: from an imported decoder, another run's workdir, or randomly."""

import logging
from pathlib import Path

import jax
from jaxtyping import Array, Key

from seed_jax import sharding
from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.errors import UserError
from seed_jax.models.diffusion import DECODERS, StableDiffusionConfig, UnclipConfig
from seed_jax.models.diffusion.latent_diffusion import LatentDiffusion
from seed_jax.train.config.decoder import DecoderModelConfig
from seed_jax.train.optimizer import EMA, init_ema
from seed_jax.train.stages import warm_start
from seed_jax.train.stages.decoder.embedding_source import EmbeddingSource
from seed_jax.typing import Tree

VOCABULARY_FILES = ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")


def architecture(
    config: DecoderModelConfig, embedding_shape: tuple[int, ...]
) -> tuple[UnclipConfig | StableDiffusionConfig, dict[str, Path]]:
    """Return the decoder's architecture, and the files of its prompt vocabulary.

    Args:
        config: options of the decoder.
        embedding_shape: of the embeddings it is trained on.

    Raises:
        UserError: the decoder is conditioned on embeddings of another shape.
    """
    files = {}
    sizes: UnclipConfig | StableDiffusionConfig
    if config.init and Path(config.init).exists():
        folder, stored = model_dir.read_config(config.init, ModelKind(config.decoder))
        config_class, _ = DECODERS[config.decoder]
        sizes = config_class.from_dict(stored["sizes"], str(folder / model_dir.CONFIG))
        files = {name: folder / name for name in VOCABULARY_FILES if (folder / name).is_file()}
    else:
        sizes = _named(config, embedding_shape)
    if sizes.embedding_shape != embedding_shape:
        raise UserError(
            f"The decoder is conditioned on embeddings of shape {sizes.embedding_shape}, the model that `source` names "
            f"gives {embedding_shape}: they do not belong together (unCLIP belongs to SEED-2's tokenizer, Stable "
            "Diffusion to SEED-1's)."
        )
    return sizes, files


def _named(config: DecoderModelConfig, shape: tuple[int, ...]) -> UnclipConfig | StableDiffusionConfig:
    if config.decoder == "unclip":
        return UnclipConfig.full() if config.config == "full" else getattr(UnclipConfig, config.config)(shape[-1])
    if config.config == "full" or len(shape) != 2:
        return StableDiffusionConfig.full()
    return getattr(StableDiffusionConfig, config.config)(shape)


def abstract_variables(decoder: LatentDiffusion, source: EmbeddingSource, trained: tuple[str, ...]) -> Tree:
    """Return boxed shapes of every collection."""
    params = decoder.abstract_params()
    averages = jax.eval_shape(init_ema, {part: params[part] for part in trained})
    return {"params": params, EMA: averages, "source": source.abstract()}


def init_variables(
    model_init: str, decoder: LatentDiffusion, source: EmbeddingSource, key: Key[Array, ""], shardings: Tree
) -> Tree:
    """Return fresh or loaded variables; the moving averages start at the parameters.

    Args:
        model_init: model directory or workdir; "" for random weights.
        decoder: the decoder.
        source: the model that makes the embeddings.
        key: for whatever is random.
        shardings: of every collection.
    """
    key_params, key_source = jax.random.split(key)
    if model_init:
        stored = model_dir.decoder_params(_open(model_init))
        model_dir.check_tree(stored, sharding.unbox(decoder.abstract_params()), model_init)
        params = jax.tree.map(lambda leaf, target: jax.device_put(leaf[...], target), stored, shardings["params"])
    else:
        logging.info("model.init is empty: the decoder starts from random weights.")
        init = sharding.jit_init(lambda key: sharding.unbox(decoder.init(key)), out_shardings=shardings["params"])
        params = init(key_params)
    trained = [part for part in shardings[EMA] if part != "updates"]
    averages = jax.jit(init_ema, out_shardings=shardings[EMA])({part: params[part] for part in trained})
    return {"params": params, EMA: averages, "source": source.init(key_source, shardings["source"])}


def _open(directory: str) -> Tree:
    """Open a model directory's parameters, or a workdir's collections; arrays are read when they are indexed."""
    _, stored = model_dir.read_config(directory)
    collections = warm_start.open_collections(directory, stored["kind"])
    return collections if EMA in collections else collections["params"]

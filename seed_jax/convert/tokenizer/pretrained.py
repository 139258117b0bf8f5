"""Foreign weights that training of the image tokenizer may start from (spec A.9, A.10).

EVA ViT-g for the image encoder, BERT-base for the Q-Former, BLIP-2's first stage for the Q-Former and projections, and
an official `seed_quantizer` file to go on from. Each fills a part of a model's parameters; the rest stays as it is.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from seed_jax.convert.key_table import Entry, assemble, expected_shapes
from seed_jax.convert.tensors import Tensors, check, listed, open_tensors
from seed_jax.convert.tokenizer.clip import open_directory
from seed_jax.convert.tokenizer.key_table import QFORMER, VIT
from seed_jax.errors import UserError

KINDS = ("vit", "bert", "blip2", "quantizer")  # in the order in which later ones overwrite earlier ones
EXTRAS = "extras"  # a part of a "quantizer", set aside when it was imported
_BERT_EMBEDDINGS = ("word_embeddings", "position_embeddings", "embed_norm/")


def read(kind: str, path: str | Path, table: Sequence[Entry], abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Read what a file holds of the parameters in `table`: a part of their tree, as float32 NumPy arrays.

    Args:
        kind: "vit" (eva_vit_g.pth), "bert" (Hugging Face folder or file), "blip2" (blip2_pretrained.pth), "quantizer"
            (seed_quantizer.pt) or "extras".
        abstract: shapes of the parameters in `table`.

    Raises:
        UserError: what the file must hold is missing or misshapen; everything wrong is listed.
    """
    shapes = flatten_dict(abstract, sep="/")
    tensors = _open(kind, Path(path))
    if kind == "bert":
        tensors = _fit_words(tensors, shapes["qformer/word_embeddings"].shape[0])
    needed = [entry for entry in table if _NEEDED[kind](entry.path)]
    optional = [entry for entry in table if _OPTIONAL[kind](entry.path) and entry not in needed]
    found = [entry for entry in optional if any(name in tensors for name in entry.names)]
    part = unflatten_dict({entry.path: shapes[entry.path] for entry in [*needed, *found]}, sep="/")
    check(expected_shapes([*needed, *found], part), tensors, allow_unexpected=True)
    absent = [entry.path for entry in optional if entry not in found]
    if absent:
        logging.info("%s does not hold %s: these stay as they are.", path, listed(absent))
    logging.info("Read %d parameters from %s.", len(needed) + len(found), path)
    arrays = assemble([*needed, *found], tensors, part)
    return _with_copies_for_queries(arrays) if kind == "bert" else arrays


def _is_vit(path: str) -> bool:
    return path.startswith("vit/")


def _is_bert(path: str) -> bool:
    inner = path.removeprefix("qformer/")
    kinds = ("/self_attention/", "/text_ffn/")
    return inner != path and (inner.startswith(_BERT_EMBEDDINGS) or any(kind in inner for kind in kinds))


def _is_blip2(path: str) -> bool:
    """Tell the queries' side, without which the file would not be BLIP-2's."""
    return path.startswith("qformer/") and not _is_text_side(path)


def _is_text_side(path: str) -> bool:
    return path.startswith(("qformer/word_", "qformer/position_")) or "/text_ffn/" in path


def _never(path: str) -> bool:
    return False


# What a file of a kind must hold, and what is taken from it beside that.
_NEEDED: dict[str, Callable[[str], bool]] = {
    "vit": _is_vit,
    "bert": _is_bert,
    "blip2": _is_blip2,
    "quantizer": lambda path: _is_blip2(path) or path.startswith(("ln_vision/", "codebook")),
    EXTRAS: _never,
}
_OPTIONAL: dict[str, Callable[[str], bool]] = {
    "vit": _never,
    "bert": _never,
    "blip2": lambda path: True,
    "quantizer": lambda path: True,
    EXTRAS: lambda path: True,
}


def _open(kind: str, path: Path) -> Tensors:
    if kind not in _NEEDED:
        raise UserError(f"Unknown starting point {kind!r}: expected one of {', '.join(_NEEDED)}.")
    tensors = open_directory(path) if path.is_dir() else open_tensors(path)
    if kind == "vit" and not any(name.startswith(VIT) for name in tensors):
        return tensors.with_prefix(VIT)
    return _as_qformer(tensors) if kind == "bert" else tensors


def _as_qformer(tensors: Tensors) -> Tensors:
    """Give BERT's tensors the names they have in the Q-Former."""
    renamed = {}
    for name, tensor in tensors.items():
        name = QFORMER + name.removeprefix("bert.")
        # The names in the files of bert-base-uncased, which came from TensorFlow.
        renamed[name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")] = (
            tensor
        )
    return Tensors(renamed, tensors.where)


def _fit_words(tensors: Tensors, wanted: int) -> Tensors:
    """Add a random row for the added word, [DEC], where only that is missing."""
    name = f"{QFORMER}embeddings.word_embeddings.weight"
    if name not in tensors or tensors[name].shape[0] != wanted - 1:
        return tensors
    tensor = tensors[name]

    def read() -> np.ndarray:
        fresh = np.random.default_rng(0).normal(0.0, 0.02, (1, tensor.shape[1]))
        return np.concatenate([tensor.read(), fresh.astype(tensor.dtype)])

    grown = type(tensor)((wanted, tensor.shape[1]), tensor.dtype, read)
    return Tensors({**tensors, name: grown}, tensors.where)


def _with_copies_for_queries(arrays: dict[str, Any]) -> dict[str, Any]:
    """Start the queries' feed-forward layers as copies of the words', as the original does."""
    flat = flatten_dict(arrays, sep="/")
    copies = {path.replace("/text_ffn/", "/query_ffn/"): leaf for path, leaf in flat.items() if "/text_ffn/" in path}
    return unflatten_dict({**flat, **copies}, sep="/")

"""Pretrained weights that training of the image tokenizer can start from (spec A.9, A.10).

EVA ViT-g for the ViT, BERT-base for the Q-Former, BLIP-2's first stage for the Q-Former and projections, and an
official `seed_quantizer` file to continue from. Each fills a part of a model's parameters; the rest keeps its values.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from seed_jax.convert.key_table import Entry, assemble, expected_shapes
from seed_jax.convert.tensors import LazyTensor, TensorDict, check_tensors, format_names, open_tensors
from seed_jax.convert.tokenizer.clip import open_directory
from seed_jax.convert.tokenizer.key_table import QFORMER, VIT
from seed_jax.errors import UserError
from seed_jax.typing import Tree

KINDS = ("vit", "bert", "blip2", "quantizer")  # in the order in which later ones overwrite earlier ones
EXTRAS = "extras"  # tensors of a "quantizer" file that its import kept separate
_BERT_EMBEDDINGS = ("word_embeddings", "position_embeddings", "embed_norm/")


def load_pretrained(kind: str, path: str | Path, table: Sequence[Entry], abstract: Mapping[str, Any]) -> Tree:
    """Read those parameters of `table` that a file holds.

    Args:
        kind: "vit" (eva_vit_g.pth), "bert" (Hugging Face folder or file), "blip2" (blip2_pretrained.pth), "quantizer"
            (seed_quantizer.pt) or "extras".
        path: the file or folder.
        table: the model's key table.
        abstract: abstract arrays of the parameters in `table`.

    Returns:
        A part of the model's tree, float32 NumPy arrays.

    Raises:
        UserError: lists required tensors that are missing and all that have a wrong shape.
    """
    shapes: dict[str, Any] = flatten_dict(dict(abstract), sep="/")
    tensors = _open(kind, Path(path))
    if kind == "bert":
        tensors = _extend_word_embeddings(tensors, shapes["qformer/word_embeddings"].shape[0])
    required = [entry for entry in table if _REQUIRED[kind](entry.path)]
    optional = [entry for entry in table if _OPTIONAL[kind](entry.path) and entry not in required]
    present = [entry for entry in optional if any(name in tensors for name in entry.names)]
    entries = [*required, *present]
    part = unflatten_dict({entry.path: shapes[entry.path] for entry in entries}, sep="/")
    check_tensors(expected_shapes(entries, part), tensors, allow_unexpected=True)
    absent = [entry.path for entry in optional if entry not in present]
    if absent:
        logging.info("%s does not hold %s: these keep their values.", path, format_names(absent))
    logging.info("Read %d parameters from %s.", len(entries), path)
    arrays = assemble(entries, tensors, part)
    return _copy_text_ffn_to_query_ffn(arrays) if kind == "bert" else arrays


def _is_vit(path: str) -> bool:
    return path.startswith("vit/")


def _is_bert(path: str) -> bool:
    inner = path.removeprefix("qformer/")
    kinds = ("/self_attention/", "/text_ffn/")
    return inner != path and (inner.startswith(_BERT_EMBEDDINGS) or any(kind in inner for kind in kinds))


def _is_blip2(path: str) -> bool:
    """Match the query side, which every BLIP-2 file has."""
    return path.startswith("qformer/") and not _is_text_side(path)


def _is_text_side(path: str) -> bool:
    return path.startswith(("qformer/word_", "qformer/position_")) or "/text_ffn/" in path


def _nothing(path: str) -> bool:
    return False


# By kind: the parameters that a file must hold, and those that are read where it holds them.
_REQUIRED: dict[str, Callable[[str], bool]] = {
    "vit": _is_vit,
    "bert": _is_bert,
    "blip2": _is_blip2,
    "quantizer": lambda path: _is_blip2(path) or path.startswith(("ln_vision/", "codebook")),
    EXTRAS: _nothing,
}
_OPTIONAL: dict[str, Callable[[str], bool]] = {
    "vit": _nothing,
    "bert": _nothing,
    "blip2": lambda path: True,
    "quantizer": lambda path: True,
    EXTRAS: lambda path: True,
}


def _open(kind: str, path: Path) -> TensorDict:
    if kind not in _REQUIRED:
        raise UserError(f"Unknown pretrained weights {kind!r}: expected one of {', '.join(_REQUIRED)}.")
    tensors = open_directory(path) if path.is_dir() else open_tensors(path)
    if kind == "vit" and not any(name.startswith(VIT) for name in tensors):
        return tensors.with_prefix(VIT)
    return _as_qformer(tensors) if kind == "bert" else tensors


def _as_qformer(tensors: TensorDict) -> TensorDict:
    """Rename BERT's tensors to their names in the Q-Former."""
    renamed: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        name = QFORMER + name.removeprefix("bert.")
        # bert-base-uncased was converted from TensorFlow and kept these names.
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        renamed[name] = tensor
    return TensorDict(renamed, tensors.source)


def _extend_word_embeddings(tensors: TensorDict, vocab_size: int) -> TensorDict:
    """Add a random embedding for the added token [DEC] where only that is missing."""
    name = f"{QFORMER}embeddings.word_embeddings.weight"
    if name not in tensors or tensors[name].shape[0] != vocab_size - 1:
        return tensors
    tensor = tensors[name]

    def read() -> np.ndarray:
        added = np.random.default_rng(0).normal(0.0, 0.02, (1, tensor.shape[1]))
        return np.concatenate([tensor.read(), added.astype(tensor.dtype)])

    extended = LazyTensor((vocab_size, tensor.shape[1]), tensor.dtype, read)
    return TensorDict({**tensors, name: extended}, tensors.source)


def _copy_text_ffn_to_query_ffn(arrays: Tree) -> Tree:
    """Initialise the queries' feed-forward layers as copies of the text's, as the original does."""
    flat: dict[str, Any] = flatten_dict(arrays, sep="/")
    copies = {path.replace("/text_ffn/", "/query_ffn/"): leaf for path, leaf in flat.items() if "/text_ffn/" in path}
    return unflatten_dict({**flat, **copies}, sep="/")

"""Weights on their way to the device, one tensor at a time: rounded to the compute format, or to 8 or 4 bits.

A model is never in memory in the format it is stored in beside the one it is used in: a stacked kernel is read, rounded
and let go of layer by layer.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from seed_jax import sharding
from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.lazy import LazyArray
from seed_jax.convert.merging import merged
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from seed_jax.models.llama.model import LlamaConfig
from seed_jax.models.nn import lora, quantized
from seed_jax.models.nn.lora import LoraSpec
from seed_jax.models.nn.quantized import Scheme
from seed_jax.typing import ParamPath

Choose = Callable[[ParamPath], Scheme | None]
Place = Callable[[ParamPath, np.ndarray], jax.Array]


def llama_schemes(name: str) -> Choose:
    """Return which kernels of a LLaMA are rounded how: all of them; the head, which is read once a token, to 8 bits."""
    blocks, head = quantized.scheme(name), quantized.scheme("int8")

    def choose(path: ParamPath) -> Scheme | None:
        if path[-1] != "kernel":
            return None
        return head if path[0] == "lm_head" else blocks

    return choose


def vit_schemes(name: str) -> Choose:
    """Return which kernels of an image tokenizer are rounded how: those of the ViT's blocks, 85 % of its weights."""
    blocks = quantized.scheme(name)
    return lambda path: blocks if path[:2] == ("vit", "blocks") and path[-1] == "kernel" else None


def unstacked(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors of a scanned LLaMA as those of one whose layers are apart; what is not read stays so."""
    parts = {name: leaf for name, leaf in tree.items() if name != "layers"}
    stacks = flatten_dict(dict(tree["layers"]))
    for layer in range(next(iter(stacks.values())).shape[0]):
        parts[f"layers_{layer}"] = unflatten_dict({path: _layer(leaf, layer) for path, leaf in stacks.items()})
    return parts


def matrices(dtype: np.dtype) -> Callable[[ParamPath], np.dtype | None]:
    """Return a rule for `load`: kernels and embeddings in this format, everything else as stored."""
    return lambda path: dtype if path[-1] in ("kernel", "embedding") else None


def load(
    tree: Mapping[str, Any],
    dtype: Callable[[ParamPath], np.dtype | None],
    choose: Choose,
    place: Place | None = None,
) -> dict[str, Any]:
    """Read, round and place every tensor of a nested dict of arrays or lazy arrays.

    Args:
        dtype: the format for a path where it stays floating-point; None: as stored.
        choose: the scheme for a path, or None.
        place: brings a leaf to the device or devices.
    """
    place = place or (lambda path, leaf: jax.device_put(leaf))
    flat = {}
    for path, leaf in flatten_dict(dict(tree)).items():
        how = choose(path)
        if how is None and isinstance(leaf, jax.Array):  # on a device already
            flat[path] = place(path, leaf.astype(dtype(path) or leaf.dtype))
            continue
        for name, part in _parts(path, leaf, how, dtype(path)).items():
            # Waited for, so that the host's copy can go before the next one is made.
            flat[(*path[:-1], name)] = jax.block_until_ready(place((*path[:-1], name), part))
    return unflatten_dict(flat)


def _parts(path: ParamPath, leaf: Any, how: Scheme | None, dtype: np.dtype | None) -> dict[str, np.ndarray]:
    leaf = leaf if isinstance(leaf, LazyArray) else LazyArray.of(leaf)
    try:
        return _quantized(leaf, how) if how else {path[-1]: np.asarray(leaf[...]).astype(dtype or leaf.dtype)}
    except (OSError, ValueError) as error:
        raise UserError(
            f"The tensor {'/'.join(path)} cannot be read ({error}): copy or import the model again."
        ) from error


def abstract(tree: Mapping[str, Any], dtype: Callable[[ParamPath], np.dtype | None], choose: Choose) -> dict[str, Any]:
    """Return the shapes of what `load` would make of shapes."""
    flat = flatten_dict(quantized.abstract(dict(tree), choose))
    return unflatten_dict({p: jax.ShapeDtypeStruct(leaf.shape, dtype(p) or leaf.dtype) for p, leaf in flat.items()})


def cut_over(mesh: Mesh, tree: Mapping[str, Any], choose: Choose, boxed: dict[str, Any]) -> Place:
    """Return what brings every device of a mesh its own part of a tensor.

    Args:
        boxed: the model's own parameters, abstract, with their logical axes.
    """
    boxed = quantized.boxed_like(quantized.abstract(dict(tree), choose), boxed)
    cuts = flatten_dict(sharding.tree_shardings(boxed, mesh))
    return lambda path, leaf: jax.device_put(leaf, cuts[path])


def _layer(leaf: Any, layer: int) -> Any:
    if isinstance(leaf, jax.Array):
        return leaf[layer]
    stack = leaf if isinstance(leaf, LazyArray) else LazyArray.of(leaf)
    return LazyArray(stack.shape[1:], stack.dtype, lambda index: np.asarray(stack[layer])[index])


def _quantized(leaf: LazyArray, how: Scheme) -> dict[str, np.ndarray]:
    if len(leaf.shape) == 2:
        return quantized.quantize(leaf[...], how)
    layers, *sizes = leaf.shape
    parts = {name: np.empty((layers, *part.shape), part.dtype) for name, part in how.shapes(*sizes).items()}
    for layer in range(layers):
        for name, part in quantized.quantize(leaf[layer], how).items():
            parts[name][layer] = part
    return parts


KIND = "llama"  # of its model directory


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """Sizes, parameters (adapters merged), vocabulary, and where the image tokenizer lies that its codes come from."""

    config: LlamaConfig
    params: dict[str, Any]
    vocabulary: Vocabulary
    image_tokenizer: Path | None


def load_language_model(directory: str | Path, dtype: str | None = None) -> LanguageModel:
    """Read a language model.

    Args:
        dtype: number format of the parameters; by default as stored.
    """
    return _language_model(model_dir.load(directory, KIND, dtype=dtype))


def open_language_model(directory: str | Path) -> LanguageModel:
    """Read a language model whose parameters stay on disk until they are used (`checkpoint.lazy`)."""
    return _language_model(model_dir.open_lazily(directory, KIND))


def _language_model(found: model_dir.ModelDir) -> LanguageModel:
    where = str(found.directory / model_dir.CONFIG)
    missing = sorted({"sizes", "image_tokenizer"} - found.config.keys())
    if missing:
        raise UserError(f"{where} lacks {' and '.join(missing)}: import the model again.")
    relative = found.config["image_tokenizer"]
    return LanguageModel(
        config=LlamaConfig.from_dict(found.config["sizes"], where),
        params=_merged(found.params, found.config.get("lora"), where),
        vocabulary=Vocabulary.load(found.directory),
        image_tokenizer=None if relative is None else (found.directory / relative).resolve(),
    )


def _merged(tree: dict[str, Any], spec: dict[str, Any] | None, where: str) -> dict[str, Any]:
    """Take a model directory's parameters as they are; merge the collections that a checkpoint has."""
    if "params" not in tree:
        return tree
    adapters = tree.get("lora")
    if adapters and not spec:
        raise UserError(f"{where} does not say how the checkpoint's adapters are scaled: it has no 'lora'.")
    if not adapters:
        return tree["params"]
    merge = merged if isinstance(tree["params"]["norm"]["scale"], LazyArray) else lora.merge
    return merge(tree["params"], adapters, LoraSpec(**spec))

"""Weights on their way to the device, one tensor at a time: converted to the compute dtype, or quantized.

A model never exists in its stored dtype beside the dtype it is used in: a stacked kernel is read, converted and freed
layer by layer.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from seed_jax import sharding
from seed_jax.checkpoint.lazy import LazyArray
from seed_jax.errors import UserError
from seed_jax.models.nn import quantized
from seed_jax.models.nn.quantized import QuantizationScheme
from seed_jax.typing import ParamPath, Tree

SchemeRule = Callable[[ParamPath], QuantizationScheme | None]
DtypeRule = Callable[[ParamPath], np.dtype | None]
PutFunction = Callable[[ParamPath, Any], jax.Array]


def llama_schemes(name: str | None) -> SchemeRule:
    """Return the rule that quantizes every kernel of a LLaMA; the head is always int8.

    Args:
        name: "int8", "int4", or None to quantize nothing.
    """
    if name is None:
        return unquantized
    blocks, head = quantized.get_scheme(name), quantized.get_scheme("int8")

    def scheme_of(path: ParamPath) -> QuantizationScheme | None:
        if path[-1] != "kernel":
            return None
        return head if path[0] == "lm_head" else blocks

    return scheme_of


def vit_schemes(name: str | None) -> SchemeRule:
    """Return the rule that quantizes the kernels of an image tokenizer's ViT blocks, 85 % of its weights."""
    if name is None:
        return unquantized
    blocks = quantized.get_scheme(name)
    return lambda path: blocks if path[:2] == ("vit", "blocks") and path[-1] == "kernel" else None


def unquantized(path: ParamPath) -> None:
    """Quantize nothing: a `SchemeRule`."""
    return


def matrix_dtype(dtype: np.dtype) -> DtypeRule:
    """Return the rule that converts kernels and embeddings to `dtype` and leaves the rest as stored."""
    return lambda path: dtype if path[-1] in ("kernel", "embedding") else None


def stored_dtype(path: ParamPath) -> None:
    """Leave every tensor as stored: a `DtypeRule`."""
    return


def unstack(tree: Mapping[str, Any]) -> Tree:
    """Turn the parameters of a scanned LLaMA into those of one with unrolled layers; lazy arrays stay lazy."""
    parts = {name: leaf for name, leaf in tree.items() if name != "layers"}
    stacks = flatten_dict(dict(tree["layers"]))
    num_layers = cast(LazyArray, next(iter(stacks.values()))).shape[0]
    for layer in range(num_layers):
        parts[f"layers_{layer}"] = unflatten_dict({path: _layer(leaf, layer) for path, leaf in stacks.items()})
    return parts


def load(tree: Mapping[str, Any], dtype_of: DtypeRule, scheme_of: SchemeRule, put: PutFunction | None = None) -> Tree:
    """Read, convert or quantize, and transfer every tensor, one after the other.

    Args:
        tree: nested dict of arrays or lazy arrays.
        dtype_of: dtype of a path that is not quantized; None leaves it as stored.
        scheme_of: quantization scheme of a path, or None.
        put: transfers an array to its device or devices; by default the first device.

    Raises:
        UserError: a tensor cannot be read.
    """
    put = put or (lambda path, leaf: jax.device_put(leaf))
    flat = {}
    for path, leaf in flatten_dict(dict(tree)).items():
        scheme = scheme_of(path)
        if scheme is None and isinstance(leaf, jax.Array):  # already on a device
            flat[path] = put(path, leaf.astype(dtype_of(path) or leaf.dtype))
            continue
        for name, part in _converted(path, leaf, scheme, dtype_of(path)).items():
            # Wait for the transfer, so that the host's copy is freed before the next one is made.
            flat[(*path[:-1], name)] = jax.block_until_ready(put((*path[:-1], name), part))
    return unflatten_dict(flat)


def abstract(tree: Mapping[str, Any], dtype_of: DtypeRule, scheme_of: SchemeRule) -> Tree:
    """Return the shapes and dtypes of what `load` makes of a tree of shapes."""
    flat: dict[ParamPath, Any] = flatten_dict(quantized.abstract(dict(tree), scheme_of))
    return unflatten_dict(
        {path: jax.ShapeDtypeStruct(leaf.shape, dtype_of(path) or leaf.dtype) for path, leaf in flat.items()}
    )


def sharded_put(mesh: Mesh, tree: Mapping[str, Any], scheme_of: SchemeRule, boxed: Tree) -> PutFunction:
    """Return the `put` of `load` that shards every tensor over a mesh.

    Args:
        mesh: the mesh.
        tree: the tree that will be loaded.
        scheme_of: quantization scheme of a path, or None.
        boxed: the model's abstract parameters with their logical axes.
    """
    boxed = quantized.logical_axes_like(quantized.abstract(dict(tree), scheme_of), boxed)
    shardings: dict[ParamPath, Any] = flatten_dict(sharding.tree_shardings(boxed, mesh))
    return lambda path, leaf: jax.device_put(leaf, shardings[path])


def _layer(leaf: Any, layer: int) -> Any:
    if isinstance(leaf, jax.Array):
        return leaf[layer]
    stack = LazyArray.from_array(leaf)
    return LazyArray(stack.shape[1:], stack.dtype, lambda index: np.asarray(stack[layer])[index])


def _converted(
    path: ParamPath, leaf: Any, scheme: QuantizationScheme | None, dtype: np.dtype | None
) -> dict[str, np.ndarray]:
    leaf = LazyArray.from_array(leaf)
    try:
        if scheme is None:
            return {path[-1]: np.asarray(leaf[...]).astype(dtype or leaf.dtype)}
        return _quantized(leaf, scheme)
    except (OSError, ValueError) as error:
        raise UserError(
            f"The tensor {'/'.join(path)} cannot be read ({error}): copy or import the model again."
        ) from error


def _quantized(leaf: LazyArray, scheme: QuantizationScheme) -> dict[str, np.ndarray]:
    if len(leaf.shape) == 2:
        return quantized.quantize(leaf[...], scheme)
    layers, inputs, outputs = leaf.shape
    parts = {name: np.empty((layers, *part.shape), part.dtype) for name, part in scheme.shapes(inputs, outputs).items()}
    for layer in range(layers):
        for name, part in quantized.quantize(leaf[layer], scheme).items():
            parts[name][layer] = part
    return parts

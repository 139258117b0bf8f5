"""Lazy transformations of parameter trees: merge LoRA adapters into their kernels, and cast to other dtypes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from seed_jax.checkpoint.lazy import LazyArray
from seed_jax.convert.key_table import checked_cast
from seed_jax.models.nn.lora import LoraSpec
from seed_jax.typing import ParamPath, Tree


def merge_lora(params: Mapping[str, Any], adapters: Mapping[str, Any], spec: LoraSpec) -> Tree:
    """Add `scale * a @ b` to every adapted kernel, one layer at a time and in float32.

    Args:
        params, adapters: trees of arrays or lazy arrays; adapted kernels are [layers, in, out].

    Returns:
        `params` with lazy float32 arrays in place of the adapted kernels.
    """
    flat: dict[ParamPath, Any] = flatten_dict(dict(params))
    low_rank: dict[ParamPath, Any] = flatten_dict(dict(adapters))
    for path in [path[:-1] for path in low_rank if path[-1] == "a"]:
        kernel = (*path, "kernel")
        flat[kernel] = _merged_kernel(flat[kernel], low_rank[(*path, "a")], low_rank[(*path, "b")], spec.scale)
    return unflatten_dict(flat)


def _merged_kernel(kernel: Any, a: Any, b: Any, scale: float) -> LazyArray:
    arrays = [LazyArray.from_array(array) for array in (kernel, a, b)]

    def read_layer(index: int) -> np.ndarray:
        base, left, right = (array[index].astype(np.float32) for array in arrays)
        return base + np.float32(scale) * (left @ right)

    def read(index: Any) -> np.ndarray:
        if index is not ...:
            return read_layer(index)
        merged = np.empty(kernel.shape, np.float32)
        for layer in range(len(merged)):
            merged[layer] = read_layer(layer)
        return merged

    return LazyArray(tuple(kernel.shape), np.dtype(np.float32), read)


def cast_params(params: Mapping[str, Any], dtype: np.dtype | Mapping[ParamPath, np.dtype]) -> Tree:
    """Return lazy arrays that are cast when they are read.

    Args:
        params: tree of arrays or lazy arrays.
        dtype: of all arrays, or path -> dtype.
    """

    def cast(path: ParamPath, leaf: Any) -> LazyArray:
        array = LazyArray.from_array(leaf)
        target = dtype[path] if isinstance(dtype, Mapping) else dtype
        return LazyArray(array.shape, target, lambda index: checked_cast("/".join(path), array[index], target))

    return unflatten_dict({path: cast(path, leaf) for path, leaf in flatten_dict(dict(params)).items()})

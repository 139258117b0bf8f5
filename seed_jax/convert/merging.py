"""Base parameters and low-rank adapters made into one model, a layer at a time and in float32."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from seed_jax.checkpoint.lazy import LazyArray
from seed_jax.convert.key_table import rounded
from seed_jax.models.nn.lora import LoraSpec


def merged(params: Mapping[str, Any], adapters: Mapping[str, Any], spec: LoraSpec) -> dict[str, Any]:
    """Return `params` with `scale * a b` added to every adapted kernel: lazy float32 arrays in place of those.

    Args:
        params, adapters: nested dicts of arrays, lazy ones too; adapted kernels are [layers, in, out].
    """
    flat, low = flatten_dict(dict(params)), flatten_dict(dict(adapters))
    for path in [path[:-1] for path in low if path[-1] == "a"]:
        kernel = (*path, "kernel")
        flat[kernel] = _sum(flat[kernel], low[(*path, "a")], low[(*path, "b")], spec.scale)
    return unflatten_dict(flat)


def _sum(kernel: Any, a: Any, b: Any, scale: float) -> LazyArray:
    parts = [part if isinstance(part, LazyArray) else LazyArray.of(part) for part in (kernel, a, b)]

    def layer(index: int) -> np.ndarray:
        whole, left, right = (part[index].astype(np.float32) for part in parts)
        return whole + np.float32(scale) * (left @ right)

    def read(index: Any) -> np.ndarray:
        if index is not ...:
            return layer(index)
        total = np.empty(kernel.shape, np.float32)
        for number in range(len(total)):
            total[number] = layer(number)
        return total

    return LazyArray(tuple(kernel.shape), np.dtype(np.float32), read)


def converted(params: Mapping[str, Any], dtype: np.dtype | Mapping[tuple[str, ...], np.dtype]) -> dict[str, Any]:
    """Return lazy arrays that are rounded to a number format, or to one for each path, when they are read."""

    def convert(path: tuple[str, ...], leaf: Any) -> LazyArray:
        leaf = leaf if isinstance(leaf, LazyArray) else LazyArray.of(leaf)
        wanted = dtype[path] if isinstance(dtype, Mapping) else dtype
        return LazyArray(leaf.shape, wanted, lambda index: rounded("/".join(path), leaf[index], wanted))

    return unflatten_dict({path: convert(path, leaf) for path, leaf in flatten_dict(dict(params)).items()})

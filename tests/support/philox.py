"""Random parameters for tests from NumPy's Philox generator: the same numbers on every machine and in any order."""

import zlib
from typing import Any

import jax
import numpy as np


def normal(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return standard normal float32 numbers that depend on the seed and the name only."""
    return np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(name.encode())])).standard_normal(
        shape, np.float32
    )


def params_like(shapes: Any, seed: int, scale: float) -> Any:
    """Fill a tree of shapes: kernels and embeddings are N(0, scale²), scales of norms are one, biases zero."""

    def fill(path: Any, leaf: Any) -> np.ndarray:
        name = "/".join(entry.key for entry in path)
        if name.endswith("scale"):
            return np.ones(leaf.shape, np.float32)
        if name.endswith("bias"):
            return np.zeros(leaf.shape, np.float32)
        return scale * normal(seed, name, leaf.shape)

    return jax.tree_util.tree_map_with_path(fill, shapes)

"""The last step of every conversion: from float32 to the number format wished for."""

import functools
from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np

from seed_jax.errors import UserError

_FLOAT16_MAX = 65504.0


def rounded(name: str, tensor: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return `tensor` in another number format; UserError where float16 cannot hold a value of it."""
    if dtype == np.float16 and tensor.dtype != np.float16 and tensor.size:
        values = tensor.astype(np.float32, copy=False)
        largest = max(float(values.max()), -float(values.min()))
        if largest > _FLOAT16_MAX:
            raise UserError(
                f"{name} holds {largest:.6g}, more than float16's largest number, {_FLOAT16_MAX:.0f}: "
                "choose --dtype bfloat16 or float32."
            )
    return tensor.astype(dtype, copy=False)


def widest(dtypes: Iterable[np.dtype]) -> np.dtype:
    """Return the narrowest number format that holds numbers of all these formats."""
    return np.dtype(functools.reduce(jnp.promote_types, dtypes))

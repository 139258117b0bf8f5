"""Which number formats a computation uses."""

import dataclasses

import jax
import jax.numpy as jnp

from seed_jax.errors import UserError

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


def as_dtype(name: str) -> jnp.dtype:
    """Return the dtype called `name` (float32, bfloat16 or float16)."""
    if name not in _DTYPES:
        raise UserError(f"Unknown dtype {name!r}: expected one of {', '.join(_DTYPES)}.")
    return jnp.dtype(_DTYPES[name])


@dataclasses.dataclass(frozen=True)
class Precision:
    """Number formats of stored parameters and of matrix products.

    Softmax, normalisation, vector-quantisation distances and losses are float32 whatever is chosen here.
    """

    params: str = "float32"
    compute: str = "float32"

    @property
    def param_dtype(self) -> jnp.dtype:
        return as_dtype(self.params)

    @property
    def compute_dtype(self) -> jnp.dtype:
        return as_dtype(self.compute)

    @property
    def matmul(self) -> jax.lax.Precision:
        """Full products for float32: TPUs and GPUs otherwise round float32 operands to bfloat16 or TF32."""
        return jax.lax.Precision.HIGHEST if self.compute == "float32" else jax.lax.Precision.DEFAULT

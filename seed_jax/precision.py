"""Dtypes of stored parameters and of computations."""

import dataclasses

import jax
import jax.numpy as jnp

from seed_jax.errors import UserError

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
THREE_PASSES = "bfloat16_3x"


def as_dtype(name: str) -> jnp.dtype:
    """Return the dtype called `name`.

    Raises:
        UserError: `name` is not float32, bfloat16 or float16.
    """
    if name not in _DTYPES:
        raise UserError(f"Unknown dtype {name!r}: expected one of {', '.join(_DTYPES)}.")
    return jnp.dtype(_DTYPES[name])


@dataclasses.dataclass(frozen=True)
class Precision:
    """Dtypes of stored parameters and of matrix multiplications.

    Softmax, normalization, vector-quantization distances and losses are always float32.

    Attributes:
        params: dtype in which parameters are stored.
        compute: dtype of activations and of the operands of matmuls; or "bfloat16_3x": float32 whose matmuls are three
            products of bfloat16 parts, half the time of exact ones on a TPU and exact to about 16 bits. A CPU computes
            exact ones.
    """

    params: str = "float32"
    compute: str = "float32"

    @property
    def param_dtype(self) -> jnp.dtype:
        """Dtype in which parameters are stored."""
        return as_dtype(self.params)

    @property
    def compute_dtype(self) -> jnp.dtype:
        """Dtype of activations and of the operands of matrix multiplications."""
        return as_dtype("float32" if self.compute == THREE_PASSES else self.compute)

    @property
    def matmul(self) -> jax.lax.Precision | jax.lax.DotAlgorithmPreset:
        """Matmul precision: full for float32, which TPUs and GPUs otherwise reduce to bfloat16 or TF32."""
        if self.compute == THREE_PASSES:
            return jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X3
        return jax.lax.Precision.HIGHEST if self.compute == "float32" else jax.lax.Precision.DEFAULT

    @property
    def matmul_name(self) -> str:
        """The name of `matmul` for `jax.default_matmul_precision`."""
        return self.matmul.name if self.compute == THREE_PASSES else self.matmul.name.lower()

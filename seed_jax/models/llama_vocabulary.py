"""LLaMA's embedding table and output head, over a vocabulary that is filled up so that it divides over a mesh."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from seed_jax.models import quantized
from seed_jax.models.llama_block import RESIDUAL
from seed_jax.models.llama_config import LlamaConfig
from seed_jax.precision import Precision

LOGITS = ("batch", "sequence", "act_vocab")


def _padded_normal(axis: int, size: int):
    """Return an initializer N(0, 0.02) whose entries from `size` on along `axis` are zero."""

    def init(key, shape, dtype):
        index = jax.lax.broadcasted_iota(jnp.int32, shape, axis)
        return jnp.where(index < size, nn.initializers.normal(0.02)(key, shape, dtype), 0)

    return init


class Embedding(nn.Module):
    """Look tokens up."""

    config: LlamaConfig
    precision: Precision

    @nn.compact
    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        init = nn.with_logical_partitioning(_padded_normal(0, self.config.vocab_size), ("vocab", "embed"))
        shape = (self.config.padded_vocab_size, self.config.hidden_size)
        table = self.param("embedding", init, shape, self.precision.param_dtype)
        # Gathered over `embed` first: looking up in a table that is cut both ways makes the partitioner copy it whole.
        table = nn.with_logical_constraint(table.astype(self.precision.compute_dtype), ("act_vocab", "act_embed"))
        return nn.with_logical_constraint(jnp.take(table, tokens, axis=0), RESIDUAL)


class Head(nn.Module):
    """Score every token of the vocabulary; sums are float32 whatever the compute dtype."""

    config: LlamaConfig
    precision: Precision

    @nn.compact
    def __call__(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        logits = quantized.product(self, hidden)  # where the parameters hold a rounded kernel
        if logits is None:
            init = nn.with_logical_partitioning(_padded_normal(1, self.config.vocab_size), ("embed", "vocab"))
            shape = (self.config.hidden_size, self.config.padded_vocab_size)
            kernel = self.param("kernel", init, shape, self.precision.param_dtype).astype(hidden.dtype)
            logits = jnp.matmul(hidden, kernel, precision=self.precision.matmul, preferred_element_type=jnp.float32)
        return nn.with_logical_constraint(logits, LOGITS)[..., : self.config.vocab_size]

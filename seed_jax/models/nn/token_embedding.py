"""Token embeddings and output heads with a vocabulary that is padded so that a mesh divides it.

The padding is not visible outside: its logits are cut off and its gradients are zero.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Float, Int

from seed_jax.models.nn import quantized
from seed_jax.models.nn.layers import param
from seed_jax.precision import Precision

VOCAB_PADDING_MULTIPLE = 128
RESIDUAL_AXES = ("batch", "sequence", "act_embed")
SEQUENCE_PARALLEL_AXES = ("batch", "residual_sequence", "act_embed")
LOGITS_AXES = ("batch", "sequence", "act_vocab")


def padded_size(vocab_size: int) -> int:
    """Return the vocabulary size rounded up so that a mesh divides it."""
    return -(-vocab_size // VOCAB_PADDING_MULTIPLE) * VOCAB_PADDING_MULTIPLE


def padded_normal(axis: int, size: int):
    """Return an initializer N(0, 0.02) whose entries from `size` on along `axis` are zero."""

    def init(key, shape, dtype):
        index = jax.lax.broadcasted_iota(jnp.int32, shape, axis)
        return jnp.where(index < size, nn.initializers.normal(0.02)(key, shape, dtype), 0)

    return init


class Embedding(nn.Module):
    """Token embedding, whose table can also be the output head.

    Attributes:
        vocab_size: number of tokens.
        width: of the embeddings.
    """

    vocab_size: int
    width: int
    precision: Precision

    def setup(self):
        self.embedding = param(
            self,
            "embedding",
            padded_normal(0, self.vocab_size),
            (padded_size(self.vocab_size), self.width),
            ("vocab", "embed"),
            self.precision.param_dtype,
        )

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Return the embeddings of tokens."""
        # All-gathered over `embed` first: a look-up in a table that is sharded in both dimensions makes the partitioner
        # replicate it.
        table = with_logical_constraint(self.embedding.astype(self.precision.compute_dtype), ("act_vocab", "act_embed"))
        return with_logical_constraint(jnp.take(table, tokens, axis=0), RESIDUAL_AXES)

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Return the logits of a head that is tied to the embeddings, accumulated in float32."""
        kernel = self.embedding.astype(hidden.dtype).T
        logits = jnp.matmul(hidden, kernel, precision=self.precision.matmul, preferred_element_type=jnp.float32)
        return with_logical_constraint(logits, LOGITS_AXES)[..., : self.vocab_size]


class Head(nn.Module):
    """Output head: logits over the vocabulary, accumulated in float32 whatever the compute dtype.

    Attributes:
        vocab_size: number of tokens.
        width: of the states.
    """

    vocab_size: int
    width: int
    precision: Precision

    @nn.compact
    def __call__(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        logits = quantized.quantized_matmul(self, hidden)  # if the parameters hold a quantized kernel
        if logits is None:
            kernel = param(
                self,
                "kernel",
                padded_normal(1, self.vocab_size),
                (self.width, padded_size(self.vocab_size)),
                ("embed", "vocab"),
                self.precision.param_dtype,
            ).astype(hidden.dtype)
            logits = jnp.matmul(hidden, kernel, precision=self.precision.matmul, preferred_element_type=jnp.float32)
        return with_logical_constraint(logits, LOGITS_AXES)[..., : self.vocab_size]

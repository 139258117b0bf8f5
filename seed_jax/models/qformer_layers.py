"""Sizes and layers of the Q-Former: BERT layers with a second MLP for queries, some with cross-attention (spec A.3)."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from seed_jax.errors import UserError
from seed_jax.models.attention import attend
from seed_jax.models.layers import Dense, LayerNorm, Mlp
from seed_jax.precision import Precision


@dataclasses.dataclass(frozen=True)
class QFormerConfig:
    """Sizes of a Q-Former; the defaults are those of SEED's causal Q-Former without its text side."""

    num_queries: int = 32
    # The original is causal exactly when there are 32 queries, the literal number; here it is said.
    causal: bool = True
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    memory_width: int = 1408
    cross_attention_every: int = 2  # layers 0, 2, 4, ... look at the memory
    epsilon: float = 1e-12
    dropout: float = 0.1
    vocab_size: int = 0  # 0: no text side; BERT's 30522 and the added [DEC] make 30523
    max_positions: int = 512

    def __post_init__(self):
        if self.width % self.heads:
            raise UserError(f"A Q-Former's width must be divisible by its heads: {self.width} and {self.heads}.")
        if self.depth % self.cross_attention_every:
            raise UserError(
                f"A Q-Former's depth must be a multiple of cross_attention_every, because its layers run in groups "
                f"that begin with cross-attention: found {self.depth} and {self.cross_attention_every}."
            )


class Attention(nn.Module):
    """Let `x` attend to `memory`, add and normalise (post-LN)."""

    config: QFormerConfig
    precision: Precision = Precision()
    deterministic: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], memory: Float[Array, "B S M"], mask: Bool[Array, "#B 1 T S"] | None = None
    ) -> Float[Array, "B T D"]:
        config, precision = self.config, self.precision

        def project(name: str, inputs):
            y = Dense(config.width, ("embed", "heads"), precision=precision, name=name)(inputs)
            return y.reshape(*inputs.shape[:2], config.heads, config.width // config.heads)

        rng = None if self.deterministic or not config.dropout else self.make_rng("dropout")
        q, k, v = project("query", x), project("key", memory), project("value", memory)
        y = attend(q, k, v, mask=mask, precision=precision, dropout=config.dropout, dropout_rng=rng)
        y = Dense(config.width, ("heads", "embed"), precision=precision, name="out")(y.reshape(x.shape))
        y = nn.Dropout(config.dropout, deterministic=self.deterministic)(y)
        return LayerNorm(config.epsilon, precision, name="norm")(y + x)


class FeedForward(nn.Module):
    """Apply an MLP, add and normalise (post-LN)."""

    config: QFormerConfig
    precision: Precision = Precision()
    deterministic: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        y = Mlp(self.config.mlp_width, self.config.width, precision=self.precision, name="mlp")(x)
        y = nn.Dropout(self.config.dropout, deterministic=self.deterministic)(y)
        return LayerNorm(self.config.epsilon, self.precision, name="norm")(y + x)


class Layer(nn.Module):
    """Self-attention over everything; queries then look at the memory, and each kind has its own MLP.

    Sows `hidden`, what the layer leaves behind.
    """

    config: QFormerConfig
    precision: Precision
    deterministic: bool
    num_queries: int  # of the positions given, how many are queries
    cross_attention: bool

    @nn.compact
    def __call__(self, x, memory, mask):
        common = (self.config, self.precision, self.deterministic)
        x = Attention(*common, name="self_attention")(x, x, mask)
        parts = []
        if self.num_queries:
            queries = x[:, : self.num_queries]
            if self.cross_attention:
                queries = Attention(*common, name="cross_attention")(queries, memory)
            parts.append(FeedForward(*common, name="query_ffn")(queries))
        if self.num_queries < x.shape[1]:
            parts.append(FeedForward(*common, name="text_ffn")(x[:, self.num_queries :]))
        x = jnp.concatenate(parts, axis=1)
        self.sow("intermediates", "hidden", x)
        return x


class LayerGroup(nn.Module):
    """One layer with cross-attention and those without that follow it: the unit of the scan."""

    config: QFormerConfig
    precision: Precision
    deterministic: bool
    num_queries: int

    @nn.compact
    def __call__(self, x, memory, mask):
        for index in range(self.config.cross_attention_every):
            layer = Layer(
                self.config, self.precision, self.deterministic, self.num_queries, index == 0, name=f"layer_{index}"
            )
            x = layer(x, memory, mask)
        return x, None

"""Q-Former: learned queries that read an image, and optionally text, through BERT layers (spec A.3, A.4, A.6)."""

import dataclasses

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from seed_jax.errors import UserError
from seed_jax.models.nn.attention import attend
from seed_jax.models.nn.layers import Dense, LayerNorm, Mlp
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


@flax.struct.dataclass
class QFormerOutput:
    """Last hidden states of what was put in."""

    queries: Float[Array, "B Q D"] | None
    text: Float[Array, "B T D"] | None


def attention_mask(
    num_queries: int,
    text_mask: Bool[Array, "B T"] | None = None,
    *,
    causal: bool,
    autoregressive: bool = False,
) -> Bool[Array, "#B 1 L L"]:
    """Say which of the positions [queries ; text] sees which (the table of spec A.4).

    Args:
        text_mask: True for words, False for padding; None if there is no text.
        causal: a query sees itself and earlier queries only. Through text it may still learn of later ones.
        autoregressive: captioning; words see all queries and earlier words, queries see no word.
    """
    length = 0 if text_mask is None else text_mask.shape[1]
    ones, tril = (lambda t, s: jnp.ones((t, s), bool)), (lambda n: jnp.tril(jnp.ones((n, n), bool)))
    query_rows = [tril(num_queries) if causal else ones(num_queries, num_queries), ones(num_queries, length)]
    text_rows = [ones(length, num_queries), tril(length) if autoregressive else ones(length, length)]
    if autoregressive:
        query_rows[1] = jnp.zeros_like(query_rows[1])
    mask = jnp.concatenate([jnp.concatenate(query_rows, 1), jnp.concatenate(text_rows, 1)], 0)[None, None]
    if text_mask is None:
        return mask
    keys = jnp.concatenate([jnp.ones((len(text_mask), num_queries), bool), text_mask], 1)
    return mask & keys[:, None, None]


class QFormer(nn.Module):
    """Read an image with learned queries, read text, or both in one sequence [queries ; text].

    The Reverse Q-Former is the same module with `causal=False` and one query (or 77).
    """

    config: QFormerConfig
    precision: Precision = Precision()
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        memory: Float[Array, "B S M"] | None = None,
        text: Int[Array, "B T"] | None = None,
        text_mask: Bool[Array, "B T"] | None = None,
        *,
        autoregressive: bool = False,
        deterministic: bool = True,
    ) -> QFormerOutput:
        """Return the last hidden states of the queries (if there is a `memory`) and of the text (if there is one).

        Args:
            memory: image features for the queries to look at, all of them.
            text_mask: True for words, False for padding; by default no padding.
            autoregressive: see `attention_mask`.
        """
        config = self.config
        if self.is_initializing() and config.vocab_size and text is None:
            text = jnp.zeros((len(memory), 1), jnp.int32)  # the text side gets its parameters whatever the call
        if text is not None and text_mask is None:
            text_mask = jnp.ones(text.shape, bool)
        num_queries = 0 if memory is None else config.num_queries
        x = self._embed(memory, text, deterministic)
        mask = attention_mask(num_queries, text_mask, causal=config.causal, autoregressive=autoregressive)
        scan = nn.scan(
            nn.remat(LayerGroup, prevent_cse=False) if self.remat else LayerGroup,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=config.depth // config.cross_attention_every,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = scan(config, self.precision, deterministic, num_queries, name="layers")(x, memory, mask)
        return QFormerOutput(
            queries=None if memory is None else x[:, :num_queries], text=None if text is None else x[:, num_queries:]
        )

    def _embed(self, memory, text, deterministic):
        """Concatenate queries, which have no position, and words, which have; one norm covers both."""
        config, dtypes = self.config, self.precision
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "embed"))
        parts = []
        if memory is not None:
            queries = self.param("query_tokens", init, (config.num_queries, config.width), dtypes.param_dtype)
            parts.append(jnp.broadcast_to(queries[None], (len(memory), *queries.shape)))
        if text is not None:
            words = self.param("word_embeddings", init, (config.vocab_size, config.width), dtypes.param_dtype)
            places = self.param("position_embeddings", init, (config.max_positions, config.width), dtypes.param_dtype)
            parts.append(jnp.asarray(words)[text] + places[None, : text.shape[1]])
        x = jnp.concatenate(parts, axis=1).astype(dtypes.compute_dtype)
        x = LayerNorm(config.epsilon, dtypes, name="embed_norm")(x)
        self.sow("intermediates", "embeddings", x)
        return nn.Dropout(config.dropout, deterministic=deterministic)(x)

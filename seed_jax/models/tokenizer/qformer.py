"""Q-Former: learned queries that attend to an image, and optionally text, in BERT layers (spec A.3, A.4, A.6)."""

import dataclasses

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from seed_jax.errors import UserError
from seed_jax.models.nn.attention import attend
from seed_jax.models.nn.layers import Dense, LayerNorm, Mlp, param
from seed_jax.precision import Precision


@dataclasses.dataclass(frozen=True)
class QFormerConfig:
    """Sizes of a Q-Former; the defaults are those of SEED's causal Q-Former without its text side."""

    num_queries: int = 32
    # In the original, a Q-Former is causal if and only if it has 32 queries; here it is an option.
    causal: bool = True
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    memory_width: int = 1408
    cross_attention_every: int = 2  # layers 0, 2, 4, ... attend to the memory
    epsilon: float = 1e-12
    dropout: float = 0.1
    vocab_size: int = 0  # 0: no text side; BERT's 30522 and the added [DEC] make 30523
    max_positions: int = 512

    def __post_init__(self):
        if self.width % self.heads:
            raise UserError(f"A Q-Former's width must be divisible by its heads: found {self.width} and {self.heads}.")
        if self.depth % self.cross_attention_every:
            raise UserError(
                f"A Q-Former's depth must be a multiple of cross_attention_every, because its layers run in groups "
                f"that begin with cross-attention: found {self.depth} and {self.cross_attention_every}."
            )


class Attention(nn.Module):
    """Attention of `x` to `memory` with a residual connection and post-norm."""

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
    """MLP with a residual connection and post-norm."""

    config: QFormerConfig
    precision: Precision = Precision()
    deterministic: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        y = Mlp(self.config.mlp_width, self.config.width, precision=self.precision, name="mlp")(x)
        y = nn.Dropout(self.config.dropout, deterministic=self.deterministic)(y)
        return LayerNorm(self.config.epsilon, self.precision, name="norm")(y + x)


class Layer(nn.Module):
    """Self-attention over queries and text; cross-attention of the queries; a separate MLP for queries and for text.

    Sows its output as `hidden`.
    """

    config: QFormerConfig
    precision: Precision
    deterministic: bool
    num_queries: int  # how many of the positions, the first ones, are queries
    cross_attention: bool

    @nn.compact
    def __call__(self, x, memory, mask):
        options = (self.config, self.precision, self.deterministic)
        x = Attention(*options, name="self_attention")(x, x, mask)
        outputs = []
        if self.num_queries:
            queries = x[:, : self.num_queries]
            if self.cross_attention:
                queries = Attention(*options, name="cross_attention")(queries, memory)
            outputs.append(FeedForward(*options, name="query_ffn")(queries))
        if self.num_queries < x.shape[1]:
            outputs.append(FeedForward(*options, name="text_ffn")(x[:, self.num_queries :]))
        x = jnp.concatenate(outputs, axis=1)
        self.sow("intermediates", "hidden", x)
        return x


class LayerGroup(nn.Module):
    """A layer with cross-attention and the following layers without: the body of the scan."""

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
    """Last hidden states of the queries and of the text; None for what was not passed."""

    queries: Float[Array, "B Q D"] | None
    text: Float[Array, "B T D"] | None


def attention_mask(
    num_queries: int,
    text_mask: Bool[Array, "B T"] | None = None,
    *,
    causal: bool,
    autoregressive: bool = False,
) -> Bool[Array, "#B 1 L L"]:
    """Return which of the positions [queries ; text] sees which (the table of spec A.4).

    Args:
        num_queries: number of queries.
        text_mask: False for padding; None if there is no text.
        causal: a query sees itself and earlier queries only. Through text it may still depend on later ones.
        autoregressive: captioning; text tokens see all queries and earlier text, queries see no text.
    """
    length = 0 if text_mask is None else text_mask.shape[1]

    def full(rows: int, columns: int) -> Array:
        return jnp.ones((rows, columns), bool)

    queries_to_queries = full(num_queries, num_queries)
    queries_to_text = full(num_queries, length)
    text_to_queries = full(length, num_queries)
    text_to_text = full(length, length)
    if causal:
        queries_to_queries = jnp.tril(queries_to_queries)
    if autoregressive:
        queries_to_text = jnp.zeros_like(queries_to_text)
        text_to_text = jnp.tril(text_to_text)
    mask = jnp.block([[queries_to_queries, queries_to_text], [text_to_queries, text_to_text]])[None, None]
    if text_mask is None:
        return mask
    keys = jnp.concatenate([full(len(text_mask), num_queries), text_mask], 1)
    return mask & keys[:, None, None]


class QFormer(nn.Module):
    """Encode an image with learned queries, a text, or both in one sequence [queries ; text].

    The Reverse Q-Former is the same module with `causal=False` and one query (or 77).

    Attributes:
        remat: recompute activations in the backward pass.
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
            memory: image features, to all of which the queries attend.
            text: token ids.
            text_mask: False for padding; by default no padding.
            autoregressive: see `attention_mask`.
            deterministic: no dropout; otherwise the rng `dropout` is needed.
        """
        config = self.config
        if self.is_initializing() and config.vocab_size and text is None and memory is not None:
            text = jnp.zeros((len(memory), 1), jnp.int32)  # so that the text side has parameters whatever the call
        if text is not None and text_mask is None:
            text_mask = jnp.ones(text.shape, bool)
        num_queries = 0 if memory is None else config.num_queries
        x = self._embed(memory, text, deterministic)
        mask = attention_mask(num_queries, text_mask, causal=config.causal, autoregressive=autoregressive)
        scan = nn.scan(
            nn.remat(LayerGroup, prevent_cse=False) if self.remat else LayerGroup,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=config.depth // config.cross_attention_every,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = scan(config, self.precision, deterministic, num_queries, name="layers")(x, memory, mask)
        return QFormerOutput(
            queries=None if memory is None else x[:, :num_queries], text=None if text is None else x[:, num_queries:]
        )

    def encode_image(self, memory: Float[Array, "B S M"], *, deterministic: bool = True) -> Float[Array, "B Q D"]:
        """Return the last hidden states of the queries, without text."""
        queries = self(memory, deterministic=deterministic).queries
        assert queries is not None
        return queries

    def encode_text(
        self, text: Int[Array, "B T"], text_mask: Bool[Array, "B T"] | None = None, *, deterministic: bool = True
    ) -> Float[Array, "B T D"]:
        """Return the last hidden states of a text, without an image."""
        states = self(text=text, text_mask=text_mask, deterministic=deterministic).text
        assert states is not None
        return states

    def _embed(self, memory, text, deterministic):
        """Concatenate the queries, without positions, and the text, with positions; normalize both together."""
        config, dtype = self.config, self.precision.param_dtype
        normal, axes, width = nn.initializers.normal(0.02), (None, "embed"), config.width
        inputs = []
        if memory is not None:
            queries = param(self, "query_tokens", normal, (config.num_queries, width), axes, dtype)
            inputs.append(jnp.broadcast_to(queries[None], (len(memory), *queries.shape)))
        if text is not None:
            tokens = param(self, "word_embeddings", normal, (config.vocab_size, width), axes, dtype)
            positions = param(self, "position_embeddings", normal, (config.max_positions, width), axes, dtype)
            inputs.append(tokens[text] + positions[None, : text.shape[1]])
        x = jnp.concatenate(inputs, axis=1).astype(self.precision.compute_dtype)
        x = LayerNorm(config.epsilon, self.precision, name="embed_norm")(x)
        self.sow("intermediates", "embeddings", x)
        return nn.Dropout(config.dropout, deterministic=deterministic)(x)

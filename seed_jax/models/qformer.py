"""Q-Former: learned queries that read an image, and optionally text, through BERT layers (spec A.3, A.4, A.6)."""

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from seed_jax.models.layers import LayerNorm
from seed_jax.models.qformer_layers import LayerGroup, QFormerConfig
from seed_jax.precision import Precision


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

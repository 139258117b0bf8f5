"""OPT, the language model of SEED-1 (SEED-OPT-2.7B, spec G)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from seed_jax.models.nn.decoder_only import AttentionMetadata, DecoderOnly
from seed_jax.models.nn.layers import Dense, LayerNorm, param
from seed_jax.models.nn.token_embedding import Embedding
from seed_jax.models.opt.block import LORA_TARGETS, Block
from seed_jax.models.opt.config import OptConfig
from seed_jax.precision import Precision
from seed_jax.typing import Tree

POSITION_OFFSET = 2  # rows of the position table before that of position 0


class PositionEmbedding(nn.Module):
    """Learned position embedding."""

    config: OptConfig
    precision: Precision

    @nn.compact
    def __call__(self, positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        config = self.config
        shape = (config.max_length + POSITION_OFFSET, config.hidden_size)
        init = nn.initializers.normal(0.02)
        table = param(self, "embedding", init, shape, (None, "embed"), self.precision.param_dtype)
        # Clipped: sequences of a batch that are finished continue beyond the last position.
        return jnp.take(table.astype(self.precision.compute_dtype), positions + POSITION_OFFSET, axis=0, mode="clip")


class Opt(DecoderOnly):
    """Decoder-only language model with learned positions and a head that is tied to the token embeddings.

    Example:
        model = Opt(OptConfig.tiny(vocab_size=1000))
        variables = model.init(jax.random.key(0), tokens)
        logits = model.apply(variables, tokens)

    With `config.num_codes` it is SEED-OPT: input ids beyond the vocabulary are images' code vectors, which one linear
    layer projects to the width of the token embeddings.

    Attributes: as of `DecoderOnly`.
    """

    config: OptConfig

    block_class = Block
    lora_targets = LORA_TARGETS

    def setup(self):
        config, precision = self.config, self.precision
        self.embed_tokens = Embedding(config.vocab_size, config.word_embed_size, precision)
        self.embed_positions = PositionEmbedding(config, precision)
        if config.word_embed_size != config.hidden_size:
            self.project_in = Dense(config.hidden_size, (None, "embed"), use_bias=False, precision=precision)
            self.project_out = Dense(config.word_embed_size, ("embed", None), use_bias=False, precision=precision)
        if config.num_codes:
            normal, shape = nn.initializers.normal(0.02), (config.num_codes, config.code_width)
            self.code_vectors = param(self, "code_vectors", normal, shape, (None, None), precision.param_dtype)
            self.code_proj = Dense(config.word_embed_size, (None, "embed"), precision=precision)
        self.layers = self.make_layers()
        if config.final_norm:
            self.final_layer_norm = LayerNorm(config.epsilon, precision)

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T W"]:
        if not self.config.num_codes:
            return self.embed_tokens(tokens)
        code = tokens - self.config.vocab_size
        vectors = jnp.take(self.code_vectors, jnp.maximum(code, 0), axis=0).astype(self.precision.compute_dtype)
        words = self.embed_tokens(jnp.where(code < 0, tokens, 0))
        return jnp.where(code[..., None] < 0, words, self.code_proj(vectors))

    def add_positions(self, embedded: Float[Array, "B T W"], positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        if self.config.word_embed_size != self.config.hidden_size:
            embedded = self.project_in(embedded)
        return embedded + self.embed_positions(positions)

    def final_states(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T W"]:
        if self.config.final_norm:
            hidden = self.final_layer_norm(hidden)
        return self.project_out(hidden) if self.config.word_embed_size != self.config.hidden_size else hidden

    def logits(self, states: Float[Array, "B T W"]) -> Float[Array, "B T V"]:
        return self.embed_tokens.logits(states)

    @nn.nowrap
    def attention_metadata(self, positions: Int[Array, "B T"], **options: Any) -> AttentionMetadata:
        return AttentionMetadata(positions=positions, **options)

    @staticmethod
    def head_kernel(params: Tree) -> Float[Array, "W Vp"]:
        return params["embed_tokens"]["embedding"].T

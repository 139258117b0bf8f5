"""LLaMA, the language model of SEED-LLaMA (spec 0.2, D.1)."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float, Int

from seed_jax.models.llama.block import LORA_TARGETS, AttentionMetadata, Block, attention_metadata
from seed_jax.models.llama.config import LlamaConfig
from seed_jax.models.nn.decoder_only import DecoderOnly, stack_layers, unstack_layers
from seed_jax.models.nn.layers import RMSNorm
from seed_jax.models.nn.token_embedding import Embedding, Head
from seed_jax.typing import Tree

__all__ = ["Llama", "LlamaConfig", "stack_layers", "unstack_layers"]


class Llama(DecoderOnly):
    """Decoder-only language model with rotary positions, RMSNorm and SwiGLU.

    Example:
        model = Llama(LlamaConfig.tiny(vocab_size=1000))
        variables = model.init(jax.random.key(0), tokens)
        logits = model.apply(variables, tokens)
        output = model.apply(variables, tokens, model.init_cache(1, 64), positions, prefill=True, method="decode")

    Attributes: as of `DecoderOnly`.
    """

    config: LlamaConfig

    block_class = Block
    lora_targets = LORA_TARGETS

    def setup(self):
        config = self.config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, self.precision)
        self.layers = self.make_layers()
        self.norm = RMSNorm(config.rms_norm_eps, self.precision)
        self.lm_head = Head(config.vocab_size, config.hidden_size, self.precision)

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        return self.embed_tokens(tokens)

    def add_positions(self, embedded: Float[Array, "B T D"], positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Return the embeddings as they are: positions are rotary."""
        return embedded

    def final_states(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.norm(hidden)

    def logits(self, states: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        return self.lm_head(states)

    @nn.nowrap
    def attention_metadata(self, positions: Int[Array, "B T"], **options: Any) -> AttentionMetadata:
        return attention_metadata(self.config, positions, **options)

    @staticmethod
    def head_kernel(params: Tree) -> Float[Array, "D Vp"]:
        return params["lm_head"]["kernel"]

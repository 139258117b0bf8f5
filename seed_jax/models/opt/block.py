"""An OPT block: attention and a ReLU MLP with biases, each with a LayerNorm before it, or (350m) after it."""

import functools

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Int

from seed_jax.models.nn.decoder_only import AttentionMetadata, LayerState, causal_attention, shard_residual
from seed_jax.models.nn.fsdp_matmul import fusion_barrier
from seed_jax.models.nn.layers import Dense, LayerNorm
from seed_jax.models.nn.lora import LoraSpec
from seed_jax.models.opt.config import OptConfig
from seed_jax.precision import Precision
from seed_jax.typing import Leaf

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


class Attention(nn.Module):
    """Causal attention within the given positions or to the KV cache."""

    config: OptConfig
    precision: Precision
    lora: LoraSpec | None
    implementation: str

    @nn.compact
    def __call__(self, state: LayerState, layer: Int[Leaf, ""], metadata: AttentionMetadata) -> LayerState:
        config, x = self.config, state.hidden
        dense = functools.partial(Dense, config.hidden_size, precision=self.precision, lora=self.lora)

        def project(name: str) -> Float[Array, "B T N D"]:
            y = dense(("embed", "heads"), name=name)(x, deterministic=metadata.deterministic)
            return y.reshape(*x.shape[:2], config.num_heads, config.head_size)

        q, k, v = project("q_proj"), project("k_proj"), project("v_proj")
        attended = causal_attention(q, k, v, state.cache, layer, metadata, self.precision, self.implementation)
        out = dense(("heads", "embed"), name="out_proj")
        hidden = out(attended.context.reshape(x.shape), deterministic=metadata.deterministic)
        return LayerState(hidden, attended.cache)


class Block(nn.Module):
    """An OPT layer as the body of a scan; sows its output as `hidden`.

    The names of the parameters are those of transformers.
    """

    config: OptConfig
    precision: Precision
    lora: LoraSpec | None
    implementation: str

    @nn.compact
    def __call__(self, state: LayerState, layer: Int[Leaf, ""], metadata: AttentionMetadata) -> tuple[LayerState, None]:
        config, x = self.config, state.hidden
        attention = Attention(config, self.precision, self.lora, self.implementation, name="self_attn")
        attention_norm = LayerNorm(config.epsilon, self.precision, name="self_attn_layer_norm")
        mlp_norm = LayerNorm(config.epsilon, self.precision, name="final_layer_norm")
        normed = attention_norm(x) if config.pre_norm else x
        attended = attention(LayerState(normed, state.cache), layer, metadata)
        x = x + attended.hidden
        if not config.pre_norm:
            x = attention_norm(x)
        x = x + self._mlp(mlp_norm(x) if config.pre_norm else x, metadata)
        if not config.pre_norm:
            x = mlp_norm(x)
        x = shard_residual(x, attended.cache)
        self.sow("intermediates", "hidden", x)
        return LayerState(x, attended.cache), None

    def _mlp(self, x: Float[Array, "B T D"], metadata: AttentionMetadata) -> Float[Array, "B T D"]:
        config = self.config
        dense = functools.partial(Dense, precision=self.precision, lora=self.lora)
        fc1 = dense(config.intermediate_size, ("embed", "mlp"), name="fc1")
        fc2 = dense(config.hidden_size, ("mlp", "embed"), name="fc2")
        hidden = jax.nn.relu(fc1(fusion_barrier(x), deterministic=metadata.deterministic))
        return fc2(fusion_barrier(hidden), deterministic=metadata.deterministic)

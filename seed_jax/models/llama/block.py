"""A LLaMA block: rotary attention and SwiGLU, each on an RMSNorm of the residual stream and added to it."""

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from seed_jax.models.llama.config import LlamaConfig
from seed_jax.models.nn import decoder_only
from seed_jax.models.nn.decoder_only import LayerState, causal_attention, shard_residual
from seed_jax.models.nn.fsdp_matmul import fusion_barrier
from seed_jax.models.nn.layers import Dense, RMSNorm
from seed_jax.models.nn.lora import LoraSpec
from seed_jax.precision import Precision
from seed_jax.typing import Leaf


@flax.struct.dataclass(kw_only=True)
class AttentionMetadata(decoder_only.AttentionMetadata):
    """What every layer needs to know about the T positions of a call; see the base class.

    Attributes:
        cos: of the rotary angles, for half a head.
        sin: of the rotary angles, for half a head.
    """

    cos: Float[Array, "B T 1 F"]
    sin: Float[Array, "B T 1 F"]


def attention_metadata(
    config: LlamaConfig,
    positions: Int[Array, "B T"],
    *,
    segment_ids: Int[Array, "B T"] | None = None,
    cache_mask: Bool[Array, "B 1 T S"] | None = None,
    deterministic: bool = True,
) -> AttentionMetadata:
    """Compute the rotary angles (float32) of `positions`, once for all layers."""
    exponents = np.arange(0, config.head_size, 2, dtype=np.float32) / config.head_size
    frequencies = 1.0 / np.float32(config.rope_theta) ** exponents
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None]
    return AttentionMetadata(
        positions=positions,
        cos=jnp.cos(angles),
        sin=jnp.sin(angles),
        segment_ids=segment_ids,
        cache_mask=cache_mask,
        deterministic=deterministic,
    )


def apply_rope(x: Float[Array, "B T H D"], metadata: AttentionMetadata) -> Float[Array, "B T H D"]:
    """Rotate dimension i together with dimension i + D / 2 (the rotate-half layout), in float32."""
    return jax.lax.platform_dependent(x, metadata.cos, metadata.sin, tpu=rope_by_permutation, default=rope_by_split)


def rope_by_split(
    x: Float[Array, "B T H D"], cos: Float[Array, "B T 1 F"], sin: Float[Array, "B T 1 F"]
) -> Float[Array, "B T H D"]:
    """Apply RoPE by splitting heads in halves and concatenating them again."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1).astype(x.dtype)


def rope_by_permutation(
    x: Float[Array, "B T H D"], cos: Float[Array, "B T 1 F"], sin: Float[Array, "B T 1 F"]
) -> Float[Array, "B T H D"]:
    """Apply RoPE with a matmul by a permutation matrix that swaps the halves.

    A TPU stores a head along its 128 lanes; splitting it leaves half of them empty in every pass over memory, 5 % of
    the planned time of an 8B step.
    """
    half = x.shape[-1] // 2
    swap = jnp.asarray(np.roll(np.eye(2 * half), half, axis=1), x.dtype)
    swapped = jnp.matmul(x, swap, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
    cos, sin = jnp.concatenate((cos, cos), axis=-1), jnp.concatenate((-sin, sin), axis=-1)
    return (x.astype(jnp.float32) * cos + swapped * sin).astype(x.dtype)


LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Attention(nn.Module):
    """Causal attention within the given positions or to the KV cache, with grouped key-value heads."""

    config: LlamaConfig
    precision: Precision
    lora: LoraSpec | None
    implementation: str

    @nn.compact
    def __call__(self, state: LayerState, layer: Int[Leaf, ""], metadata: AttentionMetadata) -> LayerState:
        config, x, cache = self.config, state.hidden, state.cache
        dense = functools.partial(Dense, use_bias=False, precision=self.precision, lora=self.lora)

        def project(name: str, heads: int) -> Float[Array, "B T N D"]:
            projection = dense(heads * config.head_size, ("embed", "heads"), name=name)
            y = projection(x, deterministic=metadata.deterministic)
            return y.reshape(*x.shape[:2], heads, config.head_size)

        q = apply_rope(project("q_proj", config.num_heads), metadata)
        k = apply_rope(project("k_proj", config.num_kv_heads), metadata)
        v = project("v_proj", config.num_kv_heads)
        attended = causal_attention(q, k, v, cache, layer, metadata, self.precision, self.implementation)
        out = dense(config.hidden_size, ("heads", "embed"), name="o_proj")
        hidden = out(attended.context.reshape(x.shape), deterministic=metadata.deterministic)
        return LayerState(hidden, attended.cache)


class Mlp(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    config: LlamaConfig
    precision: Precision
    lora: LoraSpec | None

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], metadata: AttentionMetadata) -> Float[Array, "B T D"]:
        dense = functools.partial(Dense, use_bias=False, precision=self.precision, lora=self.lora)
        width = self.config.intermediate_size
        x = fusion_barrier(x)
        gate = dense(width, ("embed", "mlp"), name="gate_proj")(x, deterministic=metadata.deterministic)
        up = dense(width, ("embed", "mlp"), name="up_proj")(x, deterministic=metadata.deterministic)
        down = dense(self.config.hidden_size, ("mlp", "embed"), name="down_proj")
        return down(fusion_barrier(jax.nn.silu(gate) * up), deterministic=metadata.deterministic)


class Block(nn.Module):
    """A LLaMA layer as the body of a scan; sows its output as `hidden`."""

    config: LlamaConfig
    precision: Precision
    lora: LoraSpec | None
    implementation: str

    @nn.compact
    def __call__(self, state: LayerState, layer: Int[Leaf, ""], metadata: AttentionMetadata) -> tuple[LayerState, None]:
        epsilon, x = self.config.rms_norm_eps, state.hidden
        attention = Attention(self.config, self.precision, self.lora, self.implementation, name="self_attn")
        normed = RMSNorm(epsilon, self.precision, name="input_layernorm")(x)
        attended = attention(LayerState(normed, state.cache), layer, metadata)
        x = x + attended.hidden
        normed = RMSNorm(epsilon, self.precision, name="post_attention_layernorm")(x)
        x = x + Mlp(self.config, self.precision, self.lora, name="mlp")(normed, metadata)
        x = shard_residual(x, attended.cache)
        self.sow("intermediates", "hidden", x)
        return LayerState(x, attended.cache), None

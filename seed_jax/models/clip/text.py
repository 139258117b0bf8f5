"""CLIP's text encoder, which computes the text states of the diffusion decoders (spec B.3).

Pre-norm blocks with causal attention over a fixed number of positions; no padding mask, as in the original. Covers
OpenCLIP ViT-H/14 (truncated to 23 layers by Stable Diffusion 2) and OpenAI's ViT-L/14 (Stable Diffusion 1).
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from seed_jax.errors import UserError
from seed_jax.models.nn.attention import attend
from seed_jax.models.nn.layers import ACTIVATIONS, Dense, LayerNorm, param
from seed_jax.precision import Precision


@dataclasses.dataclass(frozen=True)
class ClipTextConfig:
    """Sizes of a CLIP text encoder."""

    vocab_size: int = 49408
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_layers: int = 23
    num_heads: int = 16
    max_length: int = 77
    activation: str = "gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise UserError(
                f"Unknown activation {self.activation!r} of the text encoder: expected one of {', '.join(ACTIVATIONS)}."
            )
        if self.hidden_size % self.num_heads:
            raise UserError(
                f"A CLIP text encoder's num_heads must divide hidden_size: found {self.num_heads} and "
                f"{self.hidden_size}."
            )

    @classmethod
    def open_clip_h(cls) -> "ClipTextConfig":
        """Return the sizes in Stable Diffusion 2: OpenCLIP ViT-H/14 without its last layer."""
        return cls()

    @classmethod
    def vit_l(cls) -> "ClipTextConfig":
        """Return the sizes in Stable Diffusion 1: OpenAI's CLIP ViT-L/14."""
        return cls(hidden_size=768, intermediate_size=3072, num_layers=12, num_heads=12, activation="quick_gelu")


@dataclasses.dataclass(frozen=True)
class PromptTokens:
    """Ids of the special tokens around a prompt; sufficient to encode the empty one."""

    bos: int = 49406
    eos: int = 49407
    pad: int = 0  # "!", as in the Stable Diffusion 2 tokenizers; Stable Diffusion 1 pads with eos


class _Attention(nn.Module):
    config: ClipTextConfig
    precision: Precision

    @nn.compact
    def __call__(self, x):
        config = self.config

        def project(name):
            y = Dense(config.hidden_size, ("embed", "heads"), precision=self.precision, name=name)(x)
            return y.reshape(*y.shape[:-1], config.num_heads, -1)

        q, k, v = project("q_proj"), project("k_proj"), project("v_proj")
        y = attend(q, k, v, causal=True, precision=self.precision).reshape(x.shape)
        return Dense(config.hidden_size, ("heads", "embed"), precision=self.precision, name="out_proj")(y)


class _Block(nn.Module):
    config: ClipTextConfig
    precision: Precision

    @nn.compact
    def __call__(self, x, _):
        config = self.config
        y = LayerNorm(config.layer_norm_eps, self.precision, name="layer_norm1")(x)
        x = x + _Attention(config, self.precision, name="self_attn")(y)
        y = LayerNorm(config.layer_norm_eps, self.precision, name="layer_norm2")(x)
        y = Dense(config.intermediate_size, ("embed", "mlp"), precision=self.precision, name="fc1")(y)
        y = ACTIVATIONS[config.activation](y)
        return x + Dense(config.hidden_size, ("mlp", "embed"), precision=self.precision, name="fc2")(y), None


class ClipText(nn.Module):
    """Encode token ids as the states after the final norm."""

    config: ClipTextConfig
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        config, dtype = self.config, self.precision.param_dtype
        normal, width = nn.initializers.normal(0.02), config.hidden_size
        token_table = param(self, "token_embedding", normal, (config.vocab_size, width), ("vocab", "embed"), dtype)
        position_table = param(self, "position_embedding", normal, (config.max_length, width), (None, "embed"), dtype)
        x = jnp.take(token_table, tokens, axis=0) + position_table[None, : tokens.shape[1]]
        blocks = nn.scan(
            _Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=config.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = blocks(config, self.precision, name="layers")(x.astype(self.precision.compute_dtype), None)
        return LayerNorm(config.layer_norm_eps, self.precision, name="final_layer_norm")(x)

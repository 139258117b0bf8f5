"""CLIP's text encoder, the source of the decoder's text states (spec B.3).

Pre-norm blocks with causal attention over a fixed number of positions; no padding mask, as the original passes none.
Covers OpenCLIP ViT-H/14 (as cut to 23 layers by Stable Diffusion 2) and OpenAI's ViT-L/14 (Stable Diffusion 1).
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from seed_jax.errors import UserError
from seed_jax.models.nn.attention import attend
from seed_jax.models.nn.layers import Dense, LayerNorm, gelu
from seed_jax.precision import Precision


def quick_gelu(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Apply x * sigmoid(1.702 x), the GELU of OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu}


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
            raise UserError(f"ClipTextConfig: num_heads {self.num_heads} must divide hidden_size {self.hidden_size}.")

    @classmethod
    def open_clip_h(cls) -> "ClipTextConfig":
        """Return the sizes in Stable Diffusion 2: OpenCLIP ViT-H/14 without its last layer."""
        return cls()

    @classmethod
    def vit_l(cls) -> "ClipTextConfig":
        """Return the sizes in Stable Diffusion 1: OpenAI's CLIP ViT-L/14."""
        return cls(hidden_size=768, intermediate_size=3072, num_layers=12, num_heads=12, activation="quick_gelu")


class _Attention(nn.Module):
    config: ClipTextConfig
    precision: Precision

    @nn.compact
    def __call__(self, x):
        c = self.config

        def heads(name):
            y = Dense(c.hidden_size, ("embed", "heads"), precision=self.precision, name=name)(x)
            return y.reshape(*y.shape[:-1], c.num_heads, -1)

        q, k, v = heads("q_proj"), heads("k_proj"), heads("v_proj")
        y = attend(q, k, v, causal=True, precision=self.precision).reshape(x.shape)
        return Dense(c.hidden_size, ("heads", "embed"), precision=self.precision, name="out_proj")(y)


class _Block(nn.Module):
    config: ClipTextConfig
    precision: Precision

    @nn.compact
    def __call__(self, x, _):
        c = self.config
        y = LayerNorm(c.layer_norm_eps, self.precision, name="layer_norm1")(x)
        x = x + _Attention(c, self.precision, name="self_attn")(y)
        y = LayerNorm(c.layer_norm_eps, self.precision, name="layer_norm2")(x)
        y = Dense(c.intermediate_size, ("embed", "mlp"), precision=self.precision, name="fc1")(y)
        y = ACTIVATIONS[c.activation](y)
        return x + Dense(c.hidden_size, ("mlp", "embed"), precision=self.precision, name="fc2")(y), None


class ClipText(nn.Module):
    """Turn token ids into the states after the final norm."""

    config: ClipTextConfig
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        c = self.config
        normal = nn.initializers.normal(0.02)
        words = self.param(
            "token_embedding",
            nn.with_logical_partitioning(normal, ("vocab", "embed")),
            (c.vocab_size, c.hidden_size),
            self.precision.param_dtype,
        )
        places = self.param(
            "position_embedding",
            nn.with_logical_partitioning(normal, (None, "embed")),
            (c.max_length, c.hidden_size),
            self.precision.param_dtype,
        )
        x = jnp.take(words, tokens, axis=0) + places[None, : tokens.shape[1]]
        blocks = nn.scan(
            _Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=c.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = blocks(c, self.precision, name="layers")(x.astype(self.precision.compute_dtype), None)
        return LayerNorm(c.layer_norm_eps, self.precision, name="final_layer_norm")(x)

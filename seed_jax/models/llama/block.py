"""One block of LLaMA: rotary attention and SwiGLU, each after an RMSNorm and added to the residual stream."""

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from seed_jax.models.llama.config import LlamaConfig
from seed_jax.models.llama.kv_cache import KVCache
from seed_jax.models.nn import fsdp_matmul
from seed_jax.models.nn.attention import attend, attend_to_cache
from seed_jax.models.nn.layers import Dense, RMSNorm
from seed_jax.models.nn.lora import LoraSpec
from seed_jax.precision import Precision

RESIDUAL = ("batch", "sequence", "act_embed")


@flax.struct.dataclass
class Window:
    """What every layer must know about the T positions it is given.

    Attributes:
        cos, sin: of the rotary angles, for half a head.
        segment_ids: packed sequences, or None for one sequence a row.
        mask: which slots of the cache a position sees; None attends inside the window, causally.
    """

    positions: Int[Array, "B T"]
    cos: Float[Array, "B T 1 F"]
    sin: Float[Array, "B T 1 F"]
    segment_ids: Int[Array, "B T"] | None = None
    mask: Bool[Array, "B 1 T S"] | None = None
    deterministic: bool = flax.struct.field(pytree_node=False, default=True)


@flax.struct.dataclass
class Stream:
    """What goes from layer to layer: the residual stream, and the cache while decoding."""

    x: Float[Array, "B T D"]
    cache: KVCache | None = None


def window(config: LlamaConfig, positions: Int[Array, "B T"], **rest) -> Window:
    """Work out the rotary angles (float32) of `positions`, once for all layers."""
    exponents = np.arange(0, config.head_size, 2, dtype=np.float32) / config.head_size
    frequencies = 1.0 / np.float32(config.rope_theta) ** exponents
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None]
    return Window(positions=positions, cos=jnp.cos(angles), sin=jnp.sin(angles), **rest)


def rotate(x: Float[Array, "B T H D"], at: Window) -> Float[Array, "B T H D"]:
    """Turn dimension i together with dimension i + D / 2 (the rotate-half layout), in float32."""
    return jax.lax.platform_dependent(x, at.cos, at.sin, tpu=rotate_by_product, default=rotate_by_halves)


def rotate_by_halves(
    x: Float[Array, "B T H D"], cos: Float[Array, "B T 1 F"], sin: Float[Array, "B T 1 F"]
) -> Float[Array, "B T H D"]:
    """Cut the halves apart and join them again."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1).astype(x.dtype)


def rotate_by_product(
    x: Float[Array, "B T H D"], cos: Float[Array, "B T 1 F"], sin: Float[Array, "B T 1 F"]
) -> Float[Array, "B T H D"]:
    """Swap the halves by a product with a permutation.

    A TPU lays a head over its 128 lanes; cutting it leaves half of them empty on every pass over memory, which is
    5 % of a step of the 8B by the plan.
    """
    half = x.shape[-1] // 2
    swap = jnp.asarray(np.roll(np.eye(2 * half), half, axis=1), x.dtype)
    swapped = jnp.matmul(x, swap, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
    cos, sin = jnp.concatenate((cos, cos), axis=-1), jnp.concatenate((-sin, sin), axis=-1)
    return (x.astype(jnp.float32) * cos + swapped * sin).astype(x.dtype)


class Attention(nn.Module):
    """Attend causally, inside the window or to the cache; key-value heads may be fewer than heads."""

    config: LlamaConfig
    precision: Precision
    lora: LoraSpec | None
    implementation: str

    @nn.compact
    def __call__(self, stream: Stream, layer: Int[Array, ""], at: Window) -> Stream:
        c, x, cache = self.config, stream.x, stream.cache
        dense = functools.partial(Dense, use_bias=False, precision=self.precision, lora=self.lora)

        def heads(name: str, count: int) -> Float[Array, "B T N D"]:
            y = dense(count * c.head_size, ("embed", "heads"), name=name)(x, deterministic=at.deterministic)
            return y.reshape(*x.shape[:2], count, c.head_size)

        q = rotate(heads("q_proj", c.num_heads), at)
        k = rotate(heads("k_proj", c.num_kv_heads), at)
        v = heads("v_proj", c.num_kv_heads)
        if cache is not None:
            cache = cache.write(layer, k, v, None if at.mask is None else at.positions)
        how = {"precision": self.precision, "implementation": self.implementation}
        if at.mask is None:
            context = attend(q, k, v, causal=True, segment_ids=at.segment_ids, **how)
        else:
            past = cache.read(layer)
            context = attend_to_cache(q, past.k, past.v, mask=at.mask, precision=self.precision)
        out = dense(c.hidden_size, ("heads", "embed"), name="o_proj")
        return Stream(out(context.reshape(x.shape), deterministic=at.deterministic), cache)


class Mlp(nn.Module):
    """Compute SwiGLU: down(silu(gate(x)) * up(x))."""

    config: LlamaConfig
    precision: Precision
    lora: LoraSpec | None

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], at: Window) -> Float[Array, "B T D"]:
        dense = functools.partial(Dense, use_bias=False, precision=self.precision, lora=self.lora)
        wide = functools.partial(dense, self.config.intermediate_size, ("embed", "mlp"))
        x = fsdp_matmul.settled(x)
        gate = wide(name="gate_proj")(x, deterministic=at.deterministic)
        up = wide(name="up_proj")(x, deterministic=at.deterministic)
        down = dense(self.config.hidden_size, ("mlp", "embed"), name="down_proj")
        return down(fsdp_matmul.settled(jax.nn.silu(gate) * up), deterministic=at.deterministic)


class Block(nn.Module):
    """Add attention, then the MLP; written as a scan's body. Sows `hidden`, the stream it leaves behind."""

    config: LlamaConfig
    precision: Precision
    lora: LoraSpec | None
    implementation: str

    @nn.compact
    def __call__(self, stream: Stream, layer: Int[Array, ""], at: Window) -> tuple[Stream, None]:
        norm = functools.partial(RMSNorm, self.config.rms_norm_eps, self.precision)
        attention = Attention(self.config, self.precision, self.lora, self.implementation, name="self_attn")
        attended = attention(stream.replace(x=norm(name="input_layernorm")(stream.x)), layer, at)
        x = stream.x + attended.x
        x = x + Mlp(self.config, self.precision, self.lora, name="mlp")(norm(name="post_attention_layernorm")(x), at)
        x = nn.with_logical_constraint(x, RESIDUAL)
        self.sow("intermediates", "hidden", x)
        return Stream(x, attended.cache), None

"""diffusers' Flax modules, corrected while they run; the only file that imports diffusers.

The Flax modules (last shipped in diffusers 0.39) differ from their PyTorch counterparts, for which the released weights
were trained. Rather than copy thousands of lines to change a few, `corrected` intercepts the calls that differ:

    GroupNorm        the UNet's blocks fix 32 groups; the transformer blocks have eps 1e-5 instead of 1e-6
    FlaxGEGLU        the GELU's tanh approximation instead of the exact one
    attention        materializes all scores; here it goes through `attend`, which need not
    norms            compute the variance as E[x^2] - E[x]^2, which cancels; here in two passes, always in float32

It also names the blocks' outputs for remat policies.
"""

import contextlib
import functools
import importlib
import logging
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Key

from seed_jax.errors import UserError
from seed_jax.models.nn.attention import MAX_CUDNN_HEAD_SIZE, attend
from seed_jax.models.nn.layers import align_last, gelu
from seed_jax.precision import Precision
from seed_jax.typing import Tree

BLOCK_OUTPUT = "diffusion_block"
# Up to this many scores per head and image, 16 MiB in float32, one matmul is faster than blocks of queries.
MAX_XLA_SCORES = 1 << 22
NOISE_BLOCK_SIZE = 1 << 16
_MODULES = {
    "embeddings": "diffusers.models.embeddings_flax",
    "attention": "diffusers.models.attention_flax",
    "resnet": "diffusers.models.resnet_flax",
    "unet_blocks": "diffusers.models.unets.unet_2d_blocks_flax",
    "unet": "diffusers.models.unets.unet_2d_condition_flax",
    "vae": "diffusers.models.vae_flax",
}


@functools.cache
def module(name: str) -> ModuleType:
    """Import one of diffusers' Flax modules, on first use.

    Raises:
        UserError: diffusers is not installed, or without its Flax modules.
    """
    for path in _MODULES.values():
        logging.getLogger(path).setLevel(logging.ERROR)  # each module object would warn of its deprecation
    try:
        return importlib.import_module(_MODULES[name])
    except ImportError as error:
        raise UserError(
            "Generating images needs diffusers with its Flax modules (>=0.39,<0.40): "
            f"pip install 'seed-jax[decoder]' ({error})."
        ) from error


@contextlib.contextmanager
def corrected(*, groups: int, precision: Precision, attention: str = "chunked") -> Iterator[None]:
    """Make diffusers' Flax modules compute the same as their PyTorch counterparts.

    Args:
        groups: number of groups of every group norm.
        precision: dtypes.
        attention: implementation of `attend` where the score matrix is large.
    """
    attention_options = {"precision": precision, "attention": attention}
    handlers: dict[type, Callable] = {
        nn.GroupNorm: functools.partial(_group_norm, groups=groups, precision=precision),
        nn.LayerNorm: functools.partial(_layer_norm, precision=precision),
        module("attention").FlaxGEGLU: _geglu,
        module("attention").FlaxAttention: functools.partial(_transformer_attention, **attention_options),
        module("vae").FlaxAttentionBlock: functools.partial(_vae_attention, **attention_options),
    }
    named = (module("resnet").FlaxResnetBlock2D, module("attention").FlaxTransformer2DModel)

    def intercept(call: Callable, args: tuple, kwargs: dict[str, Any], context: nn.module.InterceptorContext) -> Any:
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if handler := handlers.get(type(context.module)):
            return handler(context.module, *args, **kwargs)
        y = call(*args, **kwargs)
        return checkpoint_name(y, BLOCK_OUTPUT) if isinstance(context.module, named) else y

    matmul_precision = "highest" if precision.compute == "float32" else "default"
    with jax.default_matmul_precision(matmul_precision), nn.intercept_methods(intercept):
        yield


def _standardize(x: Float[Array, "..."], axes: tuple[int, ...], epsilon: float) -> Float[Array, "..."]:
    centred = x - x.mean(axes, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(axes, keepdims=True) + epsilon)


def _scale_and_shift(norm: nn.Module, y: Float[Array, "..."], precision: Precision) -> Float[Array, "..."]:
    scale = norm.param("scale", nn.initializers.ones, y.shape[-1:])
    bias = norm.param("bias", nn.initializers.zeros, y.shape[-1:])
    scale, bias = (align_last(value.astype(jnp.float32), y) for value in (scale, bias))
    return (y * scale + bias).astype(precision.compute_dtype)


def _layer_norm(norm: nn.LayerNorm, x: Float[Array, "..."], *, precision: Precision) -> Float[Array, "..."]:
    return _scale_and_shift(norm, _standardize(x.astype(jnp.float32), (-1,), norm.epsilon), precision)


def _group_norm(
    norm: nn.GroupNorm, x: Float[Array, "B H W C"], *, groups: int, precision: Precision
) -> Float[Array, "B H W C"]:
    in_transformer = isinstance(norm.parent, module("attention").FlaxTransformer2DModel)
    grouped = x.astype(jnp.float32).reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    y = _standardize(grouped, (1, 3), 1e-6 if in_transformer else norm.epsilon)
    return _scale_and_shift(norm, y.reshape(x.shape), precision)


def _geglu(block: Any, x: Float[Array, "B T D"], deterministic: bool = True) -> Float[Array, "B T F"]:
    del deterministic  # the released model has no dropout
    linear, gate = jnp.split(block.proj(x), 2, axis=-1)
    return linear * gelu(gate)


def _transformer_attention(
    block: Any,
    x: Float[Array, "B T D"],
    context: Float[Array, "B S E"] | None = None,
    deterministic: bool = True,
    *,
    precision: Precision,
    attention: str,
) -> Float[Array, "B T D"]:
    del deterministic
    context = x if context is None else context
    q, k, v = (
        y.reshape(*y.shape[:2], block.heads, block.dim_head)
        for y in (block.query(x), block.key(context), block.value(context))
    )
    y = _attend(q, k, v, precision, attention)
    return block.proj_attn(y.reshape(*x.shape[:2], -1))


def _vae_attention(
    block: Any, x: Float[Array, "B H W C"], *, precision: Precision, attention: str
) -> Float[Array, "B H W C"]:
    pixels = block.group_norm(x).reshape(x.shape[0], -1, 1, x.shape[-1])  # one head
    y = _attend(block.query(pixels), block.key(pixels), block.value(pixels), precision, attention)
    return x + block.proj_attn(y).reshape(x.shape)


def _attend(q, k, v, precision: Precision, attention: str):
    if q.shape[1] * k.shape[1] <= MAX_XLA_SCORES:
        attention = "xla"
    elif attention == "cudnn" and q.shape[-1] > MAX_CUDNN_HEAD_SIZE:
        attention = "chunked"  # the autoencoder has one head of 512
    return attend(q, k, v, precision=precision, implementation=attention)


def initialize(shapes: Tree, rng: Key[Array, ""], dtype: jnp.dtype) -> Tree:
    """Initialize parameters as Linen's layers would, with logical axis names so that they can be sharded.

    The modules' own `init` would compile one random generator per shape, which takes minutes. A kernel is sharded along
    its inputs, a convolution along its outputs unless there are few of them (the last one).

    Args:
        shapes: abstract parameters.
        rng: key.
        dtype: of the parameters.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    filled = []
    for index, (path, leaf) in enumerate(leaves):
        name = path[-1].key
        if name == "kernel":
            noise = _truncated_normal(jax.random.fold_in(rng, index), -(-leaf.size // NOISE_BLOCK_SIZE))
            fan_in = leaf.size // leaf.shape[-1]
            value = (noise[: leaf.size] * fan_in**-0.5).reshape(leaf.shape).astype(dtype)
        else:
            value = jnp.full(leaf.shape, name == "scale", dtype)
        filled.append(nn.LogicallyPartitioned(value, _logical_axes(leaf.shape)))
    return structure.unflatten(filled)


@functools.partial(jax.jit, static_argnums=1)
def _truncated_normal(key: Key[Array, ""], blocks: int) -> Float[Array, " N"]:
    """Return truncated normal noise of standard deviation 1 after truncation at two standard deviations."""
    keys = jax.random.split(key, blocks)
    noise = jax.lax.map(lambda key: jax.random.truncated_normal(key, -2.0, 2.0, (NOISE_BLOCK_SIZE,)), keys)
    return noise.reshape(-1) / 0.87962566


def _logical_axes(shape: tuple[int, ...]) -> tuple[str | None, ...]:
    if len(shape) == 2:
        return ("embed", None)
    if len(shape) == 4:
        return (None, None, None, "embed") if shape[3] >= shape[2] else (None, None, "embed", None)
    return ("norm",) * len(shape)

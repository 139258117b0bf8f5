"""Choosing tokens: temperature, top-k, top-p and min-p with settings of each row's own, and seeds of each row's own.

The order and meaning of the filters are those of transformers: temperature, top-k, top-p, min-p. Thresholds are found
by bisection over the order of float32 numbers instead of by sorting: exact, and quicker for a large vocabulary.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from seed_jax.typing import Leaf


@flax.struct.dataclass
class Sampling:
    """Settings for each row; temperature 0 takes the likeliest token, top_k 0, top_p 1 and min_p 0 filter nothing."""

    temperature: Float[Leaf, " B"]
    top_k: Int[Leaf, " B"]
    top_p: Float[Leaf, " B"]
    min_p: Float[Leaf, " B"]
    seed: UInt32[Leaf, " B"]


def keys(seeds: UInt32[Array, " B"], step: Int[Array, ""]) -> Key[Array, " B"]:
    """Return the random keys of token number `step` of each row: they depend on the row's seed and on nothing else."""
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), step))(seeds)


def draw(scores: Float[Array, "B V"], settings: Sampling, step: Int[Array, ""]) -> Int[Array, " B"]:
    """Return a token for each row; what is impossible has the score -inf, and ties go to the lowest id."""

    def sampled(scores: Float[Array, "B V"]) -> Float[Array, "B V"]:
        chances = filtered(scores, settings)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, scores.shape[1:], jnp.float32))(keys(settings.seed, step))
        return jnp.where((settings.temperature > 0)[:, None], chances + noise, scores)

    scores = jax.lax.cond(jnp.any(settings.temperature > 0), sampled, lambda scores: scores, scores)
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def filtered(scores: Float[Array, "B V"], settings: Sampling) -> Float[Array, "B V"]:
    """Divide by the temperature and set to -inf what top-k, top-p and min-p leave out; at least one token stays."""
    hot = settings.temperature
    scores = scores / jnp.where(hot > 0, hot, 1.0)[:, None]
    scores = _if_any(settings.top_k > 0, _keep_top_k, scores, settings.top_k)
    scores = _if_any(settings.top_p < 1, _keep_top_p, scores, settings.top_p)
    # Relative to the likeliest token, so that the filters before do not matter.
    share = jnp.exp(scores - scores.max(-1, keepdims=True))
    return jnp.where(share >= settings.min_p[:, None], scores, -jnp.inf)


def _if_any(rows: Bool[Array, " B"], keep: Callable, scores: Float[Array, "B V"], setting: Array) -> Array:
    """Apply a filter where it is wanted; where no row wants it, its cost is saved."""

    def apply(scores: Float[Array, "B V"]) -> Float[Array, "B V"]:
        return jnp.where(keep(scores, setting) | ~rows[:, None], scores, -jnp.inf)

    return jax.lax.cond(jnp.any(rows), apply, lambda scores: scores, scores)


def _keep_top_k(scores: Float[Array, "B V"], top_k: Int[Array, " B"]) -> Bool[Array, "B V"]:
    """Keep the k likeliest tokens, and what ties with the last of them."""
    order = _ordered(scores)
    wanted = jnp.minimum(top_k, scores.shape[-1])
    threshold = _bisect(lambda t: jnp.sum(order >= t[:, None], axis=-1) >= wanted, len(scores))
    return order >= threshold[:, None]


def _keep_top_p(scores: Float[Array, "B V"], top_p: Float[Array, " B"]) -> Bool[Array, "B V"]:
    """Drop the least likely tokens as long as what is dropped has at most the probability 1 - p."""
    order, chances = _ordered(scores), jax.nn.softmax(scores, axis=-1)
    most = 1.0 - top_p
    threshold = _bisect(lambda t: jnp.sum(jnp.where(order < t[:, None], chances, 0.0), axis=-1) <= most, len(scores))
    return order >= jnp.minimum(threshold, order.max(-1))[:, None]


def _ordered(x: Float[Array, "B V"]) -> UInt32[Array, "B V"]:
    """Map float32 numbers to whole numbers of the same order."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits & sign, ~bits, bits | sign)


def _bisect(holds: Callable[[UInt32[Array, " B"]], Bool[Array, " B"]], rows: int) -> UInt32[Array, " B"]:
    """Return for each row the largest threshold for which `holds`, which is true of 0 and of a first stretch only."""

    def bit(index: Int[Array, ""], found: UInt32[Array, " B"]) -> UInt32[Array, " B"]:
        candidate = found | (jnp.uint32(1) << (31 - index).astype(jnp.uint32))
        return jnp.where(holds(candidate), candidate, found)

    return jax.lax.fori_loop(0, 32, bit, jnp.zeros(rows, jnp.uint32))

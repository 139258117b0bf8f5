"""Keep an eye on a codebook, and, where asked, keep it alive: k-means start, moving averages, restart of dead codes.

The original does none of this (spec A.10); the plain form is the default. What is remembered between steps lies beside
the parameters, as the collection `health`, and is saved with them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from seed_jax.errors import UserError
from seed_jax.models.tokenizer.vq import squared_distances

Tree = dict[str, Any]
_SMOOTHING = 1e-5  # of the moving counts, so that a code without members keeps a place


@dataclasses.dataclass(frozen=True)
class HealthOptions:
    """What is done for the codebook beside descending the loss.

    Attributes:
        start: "" takes the codebook as it is initialised or loaded, "kmeans" takes centres of the first vectors.
        kmeans_iterations: rounds of k-means.
        kmeans_vectors: number of vectors, for each code, that k-means looks at.
        ema_decay: above 0, codes follow the mean of their vectors as a moving average with this decay, and no gradient.
        restart_after: above 0, a code that was idle for as many steps is moved onto a vector of the present batch.
        dead_after: steps without use after which a code counts as dead in the metrics.
    """

    start: str = ""
    kmeans_iterations: int = 10
    kmeans_vectors: int = 32
    ema_decay: float = 0.0
    restart_after: int = 0
    dead_after: int = 100

    def __post_init__(self):
        if self.start not in ("", "kmeans"):
            raise UserError(f"codebook.start is {self.start!r}, expected '' or 'kmeans'.")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"codebook.ema_decay is {self.ema_decay}, expected 0 (off) to less than 1.")
        if min(self.restart_after, self.kmeans_iterations, self.dead_after) < 0 or self.kmeans_vectors < 1:
            raise UserError(
                "codebook.restart_after, kmeans_iterations and dead_after must be 0 or more, kmeans_vectors 1 or more."
            )


@flax.struct.dataclass
class Usage:
    """How the codes of a batch were used."""

    count: Float[Array, " K"]
    used: Float[Array, ""]  # share of the codebook
    perplexity: Float[Array, ""]  # the number of codes that an even use with the same entropy would have


def usage(codes: Int[Array, "*S"], num_codes: int) -> Usage:
    """Count codes."""
    count = jnp.zeros(num_codes, jnp.float32).at[codes.reshape(-1)].add(1.0)
    p = count / count.sum()
    entropy = -jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0).sum()
    return Usage(count, (count > 0).mean(dtype=jnp.float32), jnp.exp(entropy))


def first_state(codebook: Float[Array, "K C"], options: HealthOptions) -> Tree:
    """Return what is remembered before the first step."""
    state = {"idle": jnp.zeros(len(codebook), jnp.float32)}
    if options.ema_decay:
        state |= {"ema_count": jnp.ones(len(codebook), jnp.float32), "ema_sum": codebook.astype(jnp.float32)}
    return state


def observe(
    vectors: Float[Array, "B Q C"],
    codes: Int[Array, "B Q"],
    num_codes: int,
    options: HealthOptions,
    key: Key[Array, ""],
) -> dict[str, Array]:
    """Return what `advance` needs of a batch."""
    flat, codes = jax.lax.stop_gradient(vectors).reshape(-1, vectors.shape[-1]), codes.reshape(-1)
    seen = {"count": usage(codes, num_codes).count}
    if options.ema_decay:
        seen["sum"] = jnp.zeros((num_codes, flat.shape[1]), jnp.float32).at[codes].add(flat)
    if options.restart_after:
        seen["candidates"] = flat[jax.random.randint(key, (num_codes,), 0, len(flat))]
    return seen


def idle_after(idle: Float[Array, " K"], count: Float[Array, " K"]) -> Float[Array, " K"]:
    """Return for how many steps each code has not been used, given its use in the present one."""
    return jnp.where(count > 0, 0.0, idle + 1)


def advance(
    options: HealthOptions, health: Tree, codebook: Float[Array, "K C"], seen: Mapping[str, Array]
) -> tuple[Float[Array, "K C"], Tree]:
    """Return the codebook and what is remembered after a step.

    Args:
        health: what was remembered before the step.
        codebook: as the optimizer left it.
        seen: what `observe` returned for the step's batch.
    """
    state = {"idle": idle_after(health["idle"], seen["count"])}
    if options.ema_decay:
        state["ema_count"] = _moved(health["ema_count"], seen["count"], options.ema_decay)
        state["ema_sum"] = _moved(health["ema_sum"], seen["sum"], options.ema_decay)
        codebook = _means(state["ema_sum"], state["ema_count"])
    if options.restart_after:
        dead = state["idle"] >= options.restart_after
        codebook = jnp.where(dead[:, None], seen["candidates"], codebook)
        state["idle"] = jnp.where(dead, 0.0, state["idle"])
        if options.ema_decay:
            state["ema_count"] = jnp.where(dead, 1.0, state["ema_count"])
            state["ema_sum"] = jnp.where(dead[:, None], seen["candidates"], state["ema_sum"])
    return codebook, state


def _moved(old: Array, new: Array, decay: float) -> Array:
    return decay * old + (1 - decay) * new


def _means(sums: Float[Array, "K C"], counts: Float[Array, " K"]) -> Float[Array, "K C"]:
    total = counts.sum()
    smooth = (counts + _SMOOTHING) / (total + len(counts) * _SMOOTHING) * total
    return sums / smooth[:, None]


def kmeans(
    vectors: Float[Array, "N C"], num_codes: int, key: Key[Array, ""], iterations: int = 10
) -> Float[Array, "K C"]:
    """Return `num_codes` centres of `vectors` (Lloyd's algorithm); a centre without members moves onto a vector."""
    if len(vectors) < num_codes:
        raise UserError(
            f"k-means needs at least as many vectors as codes: found {len(vectors)} for {num_codes}; "
            "raise codebook.kmeans_vectors."
        )
    vectors = vectors.astype(jnp.float32)
    first, later = jax.random.split(key)
    centres = vectors[jax.random.choice(first, len(vectors), (num_codes,), replace=False)]

    def improve(centres, key):
        codes = squared_distances(vectors[None], centres)[0].argmin(-1)
        count = usage(codes, num_codes).count
        sums = jnp.zeros_like(centres).at[codes].add(vectors)
        spare = vectors[jax.random.randint(key, (num_codes,), 0, len(vectors))]
        return jnp.where(count[:, None] > 0, sums / jnp.maximum(count, 1.0)[:, None], spare), None

    return jax.lax.scan(improve, centres, jax.random.split(later, iterations))[0]

"""Monitor a codebook and, where asked, keep it from collapsing: k-means initialization, EMA updates, code restarts.

The original does none of this (spec A.10); the plain form is the default. What is kept between steps is the variable
collection `codebook_stats`, which is saved with the parameters.
"""

from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from seed_jax.errors import UserError
from seed_jax.models.tokenizer.vq import squared_distances
from seed_jax.train.config.tokenizer import CodebookConfig
from seed_jax.typing import Tree

STATS = "codebook_stats"
_SMOOTHING = 1e-5  # of the moving counts, so that a code without members keeps a place


@flax.struct.dataclass
class CodeUsage:
    """How the codes of a batch were used.

    Attributes:
        count: occurrences of each code.
        used: share of the codebook that occurred.
        perplexity: exp of the entropy: number of codes that uniform use with the same entropy would have.
    """

    count: Float[Array, " K"]
    used: Float[Array, ""]
    perplexity: Float[Array, ""]


def code_usage(codes: Int[Array, "*S"], num_codes: int) -> CodeUsage:
    """Count codes."""
    count = jnp.zeros(num_codes, jnp.float32).at[codes.reshape(-1)].add(1.0)
    p = count / count.sum()
    entropy = -jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0).sum()
    return CodeUsage(count, (count > 0).mean(dtype=jnp.float32), jnp.exp(entropy))


def init_stats(codebook: Float[Array, "K C"], options: CodebookConfig) -> Tree:
    """Return the statistics before the first step."""
    stats = {"idle": jnp.zeros(len(codebook), jnp.float32)}
    if options.ema_decay:
        stats |= {"ema_count": jnp.ones(len(codebook), jnp.float32), "ema_sum": codebook.astype(jnp.float32)}
    return stats


def batch_statistics(
    vectors: Float[Array, "B Q C"],
    codes: Int[Array, "B Q"],
    num_codes: int,
    options: CodebookConfig,
    key: Key[Array, ""],
) -> dict[str, Array]:
    """Return what `update_codebook` needs of a batch; sums of microbatches are those of the batch."""
    flat, codes = jax.lax.stop_gradient(vectors).reshape(-1, vectors.shape[-1]), codes.reshape(-1)
    statistics = {"count": code_usage(codes, num_codes).count}
    if options.ema_decay:
        statistics["sum"] = jnp.zeros((num_codes, flat.shape[1]), jnp.float32).at[codes].add(flat)
    if options.restart_after:
        statistics["candidates"] = flat[jax.random.randint(key, (num_codes,), 0, len(flat))]
    return statistics


def idle_steps(idle: Float[Array, " K"], count: Float[Array, " K"]) -> Float[Array, " K"]:
    """Return for how many steps each code has not been used, given its use in the current one."""
    return jnp.where(count > 0, 0.0, idle + 1)


def update_codebook(
    options: CodebookConfig, stats: Tree, codebook: Float[Array, "K C"], statistics: Mapping[str, Array]
) -> tuple[Float[Array, "K C"], Tree]:
    """Return codebook and statistics after a step.

    Args:
        options: which measures to take.
        stats: statistics before the step.
        codebook: after the optimizer's update.
        statistics: `batch_statistics` of the step's batch.
    """
    new_stats = {"idle": idle_steps(stats["idle"], statistics["count"])}
    if options.ema_decay:
        new_stats["ema_count"] = _moving_average(stats["ema_count"], statistics["count"], options.ema_decay)
        new_stats["ema_sum"] = _moving_average(stats["ema_sum"], statistics["sum"], options.ema_decay)
        codebook = _smoothed_means(new_stats["ema_sum"], new_stats["ema_count"])
    if options.restart_after:
        is_dead = new_stats["idle"] >= options.restart_after
        codebook = jnp.where(is_dead[:, None], statistics["candidates"], codebook)
        new_stats["idle"] = jnp.where(is_dead, 0.0, new_stats["idle"])
        if options.ema_decay:
            new_stats["ema_count"] = jnp.where(is_dead, 1.0, new_stats["ema_count"])
            new_stats["ema_sum"] = jnp.where(is_dead[:, None], statistics["candidates"], new_stats["ema_sum"])
    return codebook, new_stats


def _moving_average(old: Array, new: Array, decay: float) -> Array:
    return decay * old + (1 - decay) * new


def _smoothed_means(sums: Float[Array, "K C"], counts: Float[Array, " K"]) -> Float[Array, "K C"]:
    total = counts.sum()
    smoothed = (counts + _SMOOTHING) / (total + len(counts) * _SMOOTHING) * total
    return sums / smoothed[:, None]


def kmeans(
    vectors: Float[Array, "N C"], num_codes: int, key: Key[Array, ""], iterations: int = 10
) -> Float[Array, "K C"]:
    """Cluster vectors into `num_codes` centroids (Lloyd's algorithm); empty clusters move onto a random vector.

    Raises:
        UserError: there are fewer vectors than codes.
    """
    if len(vectors) < num_codes:
        raise UserError(
            f"k-means needs at least as many vectors as codes: there are {len(vectors)} for {num_codes}; "
            "raise codebook.kmeans_vectors."
        )
    vectors = vectors.astype(jnp.float32)
    first_key, later_key = jax.random.split(key)
    centroids = vectors[jax.random.choice(first_key, len(vectors), (num_codes,), replace=False)]

    def improve(centroids, key):
        codes = squared_distances(vectors[None], centroids)[0].argmin(-1)
        count = code_usage(codes, num_codes).count
        sums = jnp.zeros_like(centroids).at[codes].add(vectors)
        spare = vectors[jax.random.randint(key, (num_codes,), 0, len(vectors))]
        return jnp.where(count[:, None] > 0, sums / jnp.maximum(count, 1.0)[:, None], spare), None

    return jax.lax.scan(improve, centroids, jax.random.split(later_key, iterations))[0]

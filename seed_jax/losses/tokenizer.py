"""Losses of the image tokenizer's two training stages (spec A.9, A.10), one term a picture."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from seed_jax.errors import UserError
from seed_jax.losses.next_token import WeightedSum

LABEL_SMOOTHING = 0.1
ROWS = ("batch", None)


@flax.struct.dataclass
class ContrastiveLoss:
    """The loss, and how often the right partner scored highest among the batch's, either way."""

    total: WeightedSum
    image_to_text_accuracy: WeightedSum
    text_to_image_accuracy: WeightedSum


def contrastive_loss(
    image: Float[Array, "B E"],
    text: Float[Array, "B E"],
    temperature: Float[Array, ""],
    *,
    through_gather: bool = False,
    label_smoothing: float = LABEL_SMOOTHING,
) -> ContrastiveLoss:
    """Tell each picture's text from all texts of the global batch, and each text's picture likewise.

    Args:
        image, text: unit vectors; row i of one belongs to row i of the other.
        through_gather: let gradients flow into the candidates too. The original gathers them from all devices without
            gradient, so that a feature learns only from its own row; since every device averages its own rows and
            the devices' gradients are averaged, that equals stopping the gradient here, whatever the devices.
    """
    hold = (lambda x: x) if through_gather else jax.lax.stop_gradient
    sides = [(image, hold(text)), (text, hold(image))]
    logits = [_similarities(rows, candidates) / temperature for rows, candidates in sides]
    terms = [smoothed_cross_entropy(each, label_smoothing) for each in logits]
    hits = [each.argmax(1) == jnp.arange(len(each)) for each in logits]
    ones = jnp.ones(len(image), jnp.float32)
    return ContrastiveLoss(
        WeightedSum.of((terms[0] + terms[1]) / 2, ones),
        *(WeightedSum.of(hit.astype(jnp.float32), ones) for hit in hits),
    )


def _similarities(rows: Float[Array, "B E"], candidates: Float[Array, "N E"]) -> Float[Array, "B N"]:
    similarities = jnp.matmul(rows, candidates.T, precision=jax.lax.Precision.HIGHEST)
    return nn.with_logical_constraint(similarities, ROWS)


def smoothed_cross_entropy(logits: Float[Array, "B B"], label_smoothing: float) -> Float[Array, " B"]:
    """Return the cross-entropy of row i with target i; a share of the target is spread over all candidates."""
    log_p = jax.nn.log_softmax(logits, axis=1)
    return -(1 - label_smoothing) * jnp.diagonal(log_p) - label_smoothing * log_p.mean(1)


def cosine_distance(x: Float[Array, "B Q D"], target: Float[Array, "B Q D"]) -> Float[Array, " B"]:
    """Return 1 - cosine, averaged over a picture's queries."""
    x, target = x.astype(jnp.float32), target.astype(jnp.float32)
    lengths = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(target, axis=-1)
    return (1 - (x * target).sum(-1) / jnp.maximum(lengths, 1e-8)).mean(-1)


def squared_distance(x: Float[Array, "B ..."], target: Float[Array, "B ..."]) -> Float[Array, " B"]:
    """Return the squared difference, averaged over everything a picture has."""
    difference = jnp.square(x.astype(jnp.float32) - target.astype(jnp.float32))
    return difference.reshape(len(x), -1).mean(-1)


_RECONSTRUCTION = {"cosine": cosine_distance, "mse": squared_distance}


def reconstruction_loss(
    kind: str, reconstruction: Float[Array, "B Q D"], embeddings: Float[Array, "B Q D"]
) -> Float[Array, " B"]:
    """Compare causal embeddings with what was rebuilt from their codes: "cosine" (original) or "mse" (paper)."""
    if kind not in _RECONSTRUCTION:
        raise UserError(f"Unknown reconstruction loss {kind!r}: expected one of {', '.join(_RECONSTRUCTION)}.")
    return _RECONSTRUCTION[kind](reconstruction, jax.lax.stop_gradient(embeddings))

"""Losses of the image tokenizer's two training stages (spec A.9, A.10), one term per image."""

import flax.struct
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Float

from seed_jax.errors import UserError
from seed_jax.losses.next_token import WeightedSum

LABEL_SMOOTHING = 0.1
SIMILARITY_AXES = ("batch", None)


@flax.struct.dataclass
class ContrastiveLoss:
    """The image-text contrastive loss, and the accuracy of retrieval within the batch in both directions."""

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
    """Contrast each image with all texts of the global batch, and each text with all images.

    Args:
        image: unit vectors of the images.
        text: unit vectors of the texts; row i belongs to row i of `image`.
        temperature: divisor of the cosine similarities.
        through_gather: let gradients flow into the candidates too. The original all-gathers the candidates without
            gradient, so that a feature learns only as a query; since every device averages over its own queries and
            the devices' gradients are averaged, that equals stopping the gradient here, for any number of devices.
        label_smoothing: fraction of the target distribution that is spread over all candidates.
    """
    candidates = (lambda x: x) if through_gather else jax.lax.stop_gradient
    image_to_text = _similarities(image, candidates(text)) / temperature
    text_to_image = _similarities(text, candidates(image)) / temperature
    terms = smoothed_cross_entropy(image_to_text, label_smoothing) + smoothed_cross_entropy(
        text_to_image, label_smoothing
    )
    return ContrastiveLoss(
        WeightedSum.from_terms(terms / 2, jnp.ones(len(image), jnp.float32)),
        image_to_text_accuracy=_retrieval_accuracy(image_to_text),
        text_to_image_accuracy=_retrieval_accuracy(text_to_image),
    )


def _similarities(queries: Float[Array, "B E"], candidates: Float[Array, "N E"]) -> Float[Array, "B N"]:
    similarities = jnp.matmul(queries, candidates.T, precision=jax.lax.Precision.HIGHEST)
    return with_logical_constraint(similarities, SIMILARITY_AXES)


def _retrieval_accuracy(logits: Float[Array, "B B"]) -> WeightedSum:
    """Count the rows whose own column has the highest score."""
    hits = logits.argmax(1) == jnp.arange(len(logits))
    return WeightedSum.from_terms(hits.astype(jnp.float32), jnp.ones(len(logits), jnp.float32))


def smoothed_cross_entropy(logits: Float[Array, "B B"], label_smoothing: float) -> Float[Array, " B"]:
    """Return the cross-entropy of row i with target i, smoothed over all candidates."""
    log_p = jax.nn.log_softmax(logits, axis=1)
    return -(1 - label_smoothing) * jnp.diagonal(log_p) - label_smoothing * log_p.mean(1)


def cosine_distance(x: Float[Array, "B Q D"], target: Float[Array, "B Q D"]) -> Float[Array, " B"]:
    """Return 1 - cosine similarity, averaged over an image's queries."""
    x, target = x.astype(jnp.float32), target.astype(jnp.float32)
    norms = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(target, axis=-1)
    return (1 - (x * target).sum(-1) / jnp.maximum(norms, 1e-8)).mean(-1)


def squared_distance(x: Float[Array, "B ..."], target: Float[Array, "B ..."]) -> Float[Array, " B"]:
    """Return the mean squared difference per image."""
    difference = jnp.square(x.astype(jnp.float32) - target.astype(jnp.float32))
    return difference.reshape(len(x), -1).mean(-1)


_RECONSTRUCTION_LOSSES = {"cosine": cosine_distance, "mse": squared_distance}


def reconstruction_loss(
    kind: str, reconstruction: Float[Array, "B Q D"], embeddings: Float[Array, "B Q D"]
) -> Float[Array, " B"]:
    """Compare causal embeddings with their reconstruction from codes; no gradient flows to the embeddings.

    Args:
        kind: "cosine" (the original's code) or "mse" (the paper).
        reconstruction: output of the decoder of the codes.
        embeddings: causal embeddings, the target.

    Raises:
        UserError: `kind` is unknown.
    """
    if kind not in _RECONSTRUCTION_LOSSES:
        raise UserError(f"Unknown reconstruction loss {kind!r}: expected one of {', '.join(_RECONSTRUCTION_LOSSES)}.")
    return _RECONSTRUCTION_LOSSES[kind](reconstruction, jax.lax.stop_gradient(embeddings))

"""Cosine similarities of CLIP embeddings: generated against true images, and images against captions."""

import numpy as np
from jaxtyping import Float

from seed_jax.errors import UserError


def unit(embeddings: Float[np.ndarray, "*batch E"]) -> Float[np.ndarray, "*batch E"]:
    """Normalize embeddings to length 1, in float64.

    Raises:
        UserError: an embedding is zero or not finite.
    """
    embeddings = np.asarray(embeddings, np.float64)
    lengths = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    if not (np.isfinite(lengths).all() and lengths.all()):
        raise UserError("A CLIP embedding is zero or not finite: check the images and the CLIP model's weights.")
    return embeddings / lengths


def check_widths(one: np.ndarray, other: np.ndarray, name_of_one: str, name_of_other: str) -> None:
    """Raise UserError unless both embeddings have the same width."""
    if one.shape[-1] != other.shape[-1]:
        raise UserError(
            f"The CLIP embeddings of the {name_of_one} have {one.shape[-1]} values, those of the {name_of_other}"
            f" {other.shape[-1]}: compute both with the same CLIP model."
        )


def paired_similarity(images: Float[np.ndarray, "N E"], targets: Float[np.ndarray, "N E2"]) -> Float[np.ndarray, " N"]:
    """Return the cosine similarity of each pair: a generated and a true image, or an image and its caption.

    Papers report 100 times the mean.
    """
    check_widths(images, targets, "images", "targets")
    return (unit(images) * unit(targets)).sum(-1)

"""CMMD: maximum mean discrepancy between CLIP image embeddings, with the constants of its paper.

S. Jayasumana et al.: Rethinking FID: Towards a Better Evaluation Metric for Image Generation, 2024. The paper's
embeddings are those of CLIP ViT-L/14 at 336 pixels.
"""

import numpy as np
from jaxtyping import Float

from seed_jax.errors import UserError
from seed_jax.evaluation.metrics.clip_similarity import check_widths, unit

_SIGMA = 10.0
_SCALE = 1000.0
_ROWS = 1024  # kernel values of as many rows are held at once


def cmmd(images: Float[np.ndarray, "N E"], references: Float[np.ndarray, "M E2"]) -> float:
    """Return 1000 times the biased squared MMD with a Gaussian kernel of width 10 on unit vectors.

    Args:
        images: CLIP embeddings of generated images; they are normalized here.
        references: CLIP embeddings of reference images.
    """
    check_widths(images, references, "images", "reference images")
    for name, embeddings in (("images", images), ("reference images", references)):
        if len(embeddings) < 2:
            raise UserError(f"CMMD needs at least two {name}, and there are {len(embeddings)}: give more of them.")
    x, y = unit(images), unit(references)
    return _SCALE * (_mean_kernel(x, x) + _mean_kernel(y, y) - 2 * _mean_kernel(x, y))


def _mean_kernel(x: Float[np.ndarray, "N E"], y: Float[np.ndarray, "M E"]) -> float:
    """Return the mean over all pairs; 1 - k is summed, which is small, so that no digits are lost."""
    total = 0.0
    for start in range(0, len(x), _ROWS):
        squared_distances = np.maximum(2 - 2 * (x[start : start + _ROWS] @ y.T), 0)
        total += np.expm1(-squared_distances / (2 * _SIGMA**2)).sum()
    return 1 + total / (len(x) * len(y))

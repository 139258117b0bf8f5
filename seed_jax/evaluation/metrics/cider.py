"""CIDEr as pycocoevalcap computes it, which is the CIDEr-D formula: clipped counts and a penalty on length.

R. Vedantam, C. L. Zitnick, D. Parikh: CIDEr: Consensus-based Image Description Evaluation, 2015. No stemming.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from seed_jax.evaluation.metrics.ngrams import NGram, ngram_counts

_MAX_N = 4
_SIGMA = 6.0


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, Float[np.ndarray, " images"]]:
    """Score tokenized captions against tokenized references.

    The document frequencies are those of the given references: scores compare between equal sets of images only, and a
    single image scores 0.

    Args:
        candidates: one caption for each image.
        references: the captions of each image.

    Returns:
        The mean over the images, and each image's score (papers give 100 times these).
    """
    reference_counts = [[ngram_counts(reference.split(), _MAX_N) for reference in group] for group in references]
    document_frequency: Counter[NGram] = Counter()
    for group in reference_counts:
        document_frequency.update(set().union(*group))
    log_images = math.log(len(references)) if references else 0.0
    inverse_frequency = {ngram: log_images - math.log(count) for ngram, count in document_frequency.items()}
    scores = np.zeros(len(candidates))
    for index, (candidate, group) in enumerate(zip(candidates, reference_counts, strict=True)):
        weights, norms, length = _weigh(ngram_counts(candidate.split(), _MAX_N), inverse_frequency, log_images)
        total = np.zeros(_MAX_N)
        for counts in group:
            total += _similarity(weights, norms, length, *_weigh(counts, inverse_frequency, log_images))
        scores[index] = total.mean() / len(group) * 10.0
    return float(scores.mean()) if len(scores) else 0.0, scores


def _weigh(
    counts: Counter[NGram], inverse_frequency: dict[NGram, float], unseen: float
) -> tuple[dict[NGram, float], list[float], int]:
    """Return the TF-IDF weight of each n-gram, the norm for each n, and the number of bigrams."""
    weights = {ngram: count * inverse_frequency.get(ngram, unseen) for ngram, count in counts.items()}
    squares = [0.0] * _MAX_N
    length = 0
    for ngram, weight in weights.items():
        n = len(ngram) - 1
        squares[n] += weight * weight
        if n == 1:
            length += counts[ngram]
    return weights, [math.sqrt(square) for square in squares], length


def _similarity(
    candidate: dict[NGram, float],
    candidate_norms: list[float],
    candidate_length: int,
    reference: dict[NGram, float],
    reference_norms: list[float],
    reference_length: int,
) -> Float[np.ndarray, " n"]:
    products = [0.0] * _MAX_N
    for ngram in candidate.keys() & reference.keys():
        weight = reference[ngram]
        products[len(ngram) - 1] += min(candidate[ngram], weight) * weight
    penalty = math.exp(-((candidate_length - reference_length) ** 2) / (2 * _SIGMA**2))
    return np.array(
        [
            product / (one * other) * penalty if one and other else product * penalty
            for product, one, other in zip(products, candidate_norms, reference_norms, strict=True)
        ]
    )

"""BLEU-1 to BLEU-4 as pycocoevalcap computes them, of each image and of the whole set."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from seed_jax.evaluation.metrics.ngrams import ngram_counts

_MAX_N = 4
# pycocoevalcap's constants against division by zero: they are visible in its scores (0.99999999983, 9e-17).
_SMALL = 1e-9
_TINY = 1e-15


def bleu(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[Float[np.ndarray, "4"], Float[np.ndarray, "4 images"]]:
    """Score tokenized captions against tokenized references.

    The length that a caption is compared with is the closest reference's, of two equally close ones the shorter.

    Args:
        candidates: one caption for each image.
        references: the captions of each image.

    Returns:
        BLEU-1..4 of the set, from summed counts and lengths, and of each image.
    """
    correct = np.zeros((_MAX_N, len(candidates)))
    guessed = np.zeros((_MAX_N, len(candidates)))
    candidate_lengths = np.zeros(len(candidates))
    reference_lengths = np.zeros(len(candidates))
    for index, (candidate, group) in enumerate(zip(candidates, references, strict=True)):
        words = candidate.split()
        lengths = []
        most: dict[tuple[str, ...], int] = {}
        for reference in group:
            reference_words = reference.split()
            lengths.append(len(reference_words))
            for ngram, count in ngram_counts(reference_words, _MAX_N).items():
                if count > most.get(ngram, 0):
                    most[ngram] = count
        candidate_lengths[index] = len(words)
        reference_lengths[index] = min(lengths, key=lambda length: (abs(length - len(words)), length))
        guessed[:, index] = [max(0, len(words) - n) for n in range(_MAX_N)]
        for ngram, count in ngram_counts(words, _MAX_N).items():
            correct[len(ngram) - 1, index] += min(count, most.get(ngram, 0))
    per_image = _scores(correct, guessed, candidate_lengths, reference_lengths)
    whole = _scores(
        correct.sum(1, keepdims=True),
        guessed.sum(1, keepdims=True),
        candidate_lengths.sum(keepdims=True),
        reference_lengths.sum(keepdims=True),
    )
    return whole[:, 0], per_image


def _scores(
    correct: Float[np.ndarray, "4 N"],
    guessed: Float[np.ndarray, "4 N"],
    candidate_lengths: Float[np.ndarray, " N"],
    reference_lengths: Float[np.ndarray, " N"],
) -> Float[np.ndarray, "4 N"]:
    precisions = (correct + _TINY) / (guessed + _SMALL)
    orders = 1.0 / np.arange(1, _MAX_N + 1)[:, None]
    ratio = (candidate_lengths + _TINY) / (reference_lengths + _SMALL)
    brevity = np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, 1)), 1.0)
    return np.cumprod(precisions, axis=0) ** orders * brevity

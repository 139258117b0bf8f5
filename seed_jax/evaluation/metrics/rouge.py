"""ROUGE-L as pycocoevalcap computes it: maximal precision and maximal recall over the references separately."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

_BETA = 1.2


def rouge_l(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, Float[np.ndarray, " images"]]:
    """Score tokenized captions against tokenized references by their longest common subsequence.

    Args:
        candidates: one caption for each image.
        references: the captions of each image.

    Returns:
        The mean over the images, and each image's score.
    """
    scores = np.zeros(len(candidates))
    for index, (candidate, group) in enumerate(zip(candidates, references, strict=True)):
        # Not split(): a no-break space belongs to its token here, and an empty caption is one empty token.
        words = candidate.split(" ")
        precision = recall = 0.0
        for reference in group:
            reference_words = reference.split(" ")
            common = _longest_common_subsequence(words, reference_words)
            precision = max(precision, common / len(words))
            recall = max(recall, common / len(reference_words))
        if precision and recall:
            scores[index] = (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)
    return float(scores.mean()) if len(scores) else 0.0, scores


def _longest_common_subsequence(one: list[str], other: list[str]) -> int:
    """Return the length of the longest common subsequence: one bit of an integer for each word of `one`."""
    occurrences: dict[str, int] = {}
    for index, word in enumerate(one):
        occurrences[word] = occurrences.get(word, 0) | 1 << index
    everything = (1 << len(one)) - 1
    unmatched = everything
    for word in other:
        matched = unmatched & occurrences.get(word, 0)
        unmatched = (unmatched + matched | unmatched - matched) & everything
    return len(one) - unmatched.bit_count()

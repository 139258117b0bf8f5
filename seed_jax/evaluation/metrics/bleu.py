"""BLEU-1 to BLEU-4 as pycocoevalcap computes them, of each image and of the whole set."""

import numpy as np
from jaxtyping import Float, Int

from seed_jax.evaluation.metrics.ngrams import MAX_N, CountedCaptions, NGrams

# pycocoevalcap's constants against division by zero: they are visible in its scores (0.99999999983, 9e-17).
_SMALL = 1e-9
_TINY = 1e-15


def bleu(captions: CountedCaptions) -> tuple[Float[np.ndarray, " orders"], Float[np.ndarray, "orders images"]]:
    """Score captions by the n-grams that they share with their references.

    The length that a caption is compared with is the closest reference's, of two equally close ones the shorter.

    Returns:
        BLEU-1..4 of the set, from summed counts and lengths, and of each image.
    """
    correct = np.stack(
        [
            _clipped(candidates, references, captions.images)
            for candidates, references in zip(captions.candidates, captions.references, strict=True)
        ]
    )
    lengths = captions.candidate_words
    guessed = np.maximum(lengths - np.arange(MAX_N)[:, None], 0)
    closest = _closest_lengths(captions)
    per_image = _scores(correct, guessed, lengths, closest)
    whole = _scores(correct.sum(1)[:, None], guessed.sum(1)[:, None], lengths.sum()[None], closest.sum()[None])
    return whole[:, 0], per_image


def _clipped(candidates: NGrams, references: NGrams, images: int) -> Int[np.ndarray, " images"]:
    """Count each image's n-grams, clipped by their largest count in one of its references."""
    keys, group = np.unique(np.concatenate([references.key, candidates.key]), return_inverse=True)
    most = np.zeros(len(keys), np.int64)
    np.maximum.at(most, group[: len(references.count)], references.count)
    clipped = np.minimum(candidates.count, most[group[len(references.count) :]])
    return np.bincount(candidates.image, clipped, images).astype(np.int64)


def _closest_lengths(captions: CountedCaptions) -> Int[np.ndarray, " images"]:
    image, length = captions.image_of_reference, captions.reference_words
    order = np.lexsort((length, np.abs(length - captions.candidate_words[image]), image))
    return length[order][np.searchsorted(image, np.arange(captions.images))]


def _scores(
    correct: Int[np.ndarray, "orders N"],
    guessed: Int[np.ndarray, "orders N"],
    candidate_lengths: Int[np.ndarray, " N"],
    reference_lengths: Int[np.ndarray, " N"],
) -> Float[np.ndarray, "orders N"]:
    precisions = (correct + _TINY) / (guessed + _SMALL)
    orders = 1.0 / np.arange(1, MAX_N + 1)[:, None]
    ratio = (candidate_lengths + _TINY) / (reference_lengths + _SMALL)
    brevity = np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, 1)), 1.0)
    return np.cumprod(precisions, axis=0) ** orders * brevity

"""CIDEr as pycocoevalcap computes it, which is the CIDEr-D formula: clipped counts and a penalty on length.

R. Vedantam, C. L. Zitnick, D. Parikh: CIDEr: Consensus-based Image Description Evaluation, 2015. No stemming.
"""

import numpy as np
from jaxtyping import Float

from seed_jax.evaluation.metrics.ngrams import MAX_N, CountedCaptions

_SIGMA = 6.0


def cider(captions: CountedCaptions) -> tuple[float, Float[np.ndarray, " images"]]:
    """Score captions by the TF-IDF weighted n-grams that they share with their references.

    The document frequencies are those of the given references: scores compare between equal sets of images only, and a
    single image scores 0.

    Returns:
        The mean over the images, and each image's score (papers give 100 times these).
    """
    images, image_of_reference = captions.images, captions.image_of_reference
    if not images:
        return 0.0, np.zeros(0)
    similarity = np.zeros(len(image_of_reference))
    for candidates, references in zip(captions.candidates, captions.references, strict=True):
        documents = np.unique(references.key) % max(references.distinct, 1)
        document_frequency = np.bincount(documents, minlength=references.distinct)
        inverse_frequency = np.log(images) - np.log(np.maximum(document_frequency, 1))
        candidate_weights = candidates.count * inverse_frequency[candidates.ngram]
        reference_weights = references.count * inverse_frequency[references.ngram]
        reference_index = references.caption - images
        candidate_norms = np.sqrt(np.bincount(candidates.caption, candidate_weights**2, images))
        reference_norms = np.sqrt(np.bincount(reference_index, reference_weights**2, len(image_of_reference)))
        shared, found = _lookup(references.key, candidates.key)
        clipped = np.minimum(candidate_weights[found], reference_weights[shared])
        shared_weights = clipped * reference_weights[shared]
        products = np.bincount(reference_index[shared], shared_weights, len(similarity)).astype(np.float64)
        norms = candidate_norms[image_of_reference] * reference_norms
        similarity += products / np.where(norms > 0, norms, 1)
    # pycocoevalcap's lengths are numbers of bigrams.
    candidate_lengths = np.maximum(captions.candidate_words - 1, 0)
    reference_lengths = np.maximum(captions.reference_words - 1, 0)
    difference = candidate_lengths[image_of_reference] - reference_lengths
    similarity *= np.exp(-(difference**2) / (2 * _SIGMA**2))
    scores = np.bincount(image_of_reference, similarity, images) / np.bincount(image_of_reference, minlength=images)
    scores *= 10.0 / MAX_N
    return float(scores.mean()), scores


def _lookup(keys: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the keys that the sorted table holds, and where it holds them."""
    if not len(table):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    position = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    held = np.flatnonzero(table[position] == keys)
    return held, position[held]

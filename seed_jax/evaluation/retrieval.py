"""Zero-shot retrieval: find a picture's captions among all captions, and a caption's picture (spec A.11).

A score is the product of unit vectors; nothing is re-ranked. A candidate that scores as high as the right one counts as
ranked before it, so that codes which make pictures indistinguishable gain nothing by it.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

KS = (1, 5, 10)
_ROWS = 1024  # scores of as many queries are held at once


@dataclasses.dataclass(frozen=True, eq=False)
class Vectors:
    """Unit vectors of pictures and of captions, and which picture each caption belongs to."""

    images: Float[np.ndarray, "N E"]
    texts: Float[np.ndarray, "M E"]
    image_of_text: Int[np.ndarray, " M"]


def recall(vectors: Vectors, ks: Sequence[int] = KS) -> dict[str, float]:
    """Return how often the right answer is among the best k: `i2t_recall@k` and `t2i_recall@k`.

    Any of a picture's captions is right. A picture without captions is no query.
    """
    asked = np.unique(vectors.image_of_text)
    ranks = {"i2t": _image_ranks(vectors)[asked], "t2i": _text_ranks(vectors)}
    return {f"{way}_recall@{k}": float((found < k).mean()) for way, found in ranks.items() for k in ks}


def _text_ranks(vectors: Vectors) -> Int[np.ndarray, " M"]:
    """Return how many wrong pictures score at least as high as each caption's own."""
    ranks = np.empty(len(vectors.texts), np.int64)
    for start in range(0, len(ranks), _ROWS):
        part = slice(start, start + _ROWS)
        scores = vectors.texts[part] @ vectors.images.T
        own = np.take_along_axis(scores, vectors.image_of_text[part, None], 1)
        ranks[part] = (scores >= own).sum(1) - 1
    return ranks


def _image_ranks(vectors: Vectors) -> Int[np.ndarray, " N"]:
    """Return how many captions of other pictures score at least as high as each picture's best own one."""
    ranks = np.empty(len(vectors.images), np.int64)
    for start in range(0, len(ranks), _ROWS):
        part = slice(start, start + _ROWS)
        scores = vectors.images[part] @ vectors.texts.T
        own = vectors.image_of_text[None] == np.arange(len(ranks))[part, None]
        best = np.where(own, scores, -np.inf).max(1, initial=-np.inf, keepdims=True)
        ranks[part] = (~own & (scores >= best)).sum(1)
    return ranks

"""Zero-shot retrieval: recall of an image's captions among all captions, and of a caption's image (spec A.11).

Scores are inner products of unit vectors, without re-ranking. A candidate whose score equals the correct one's is
ranked before it, so that codes which make images indistinguishable do not profit from ties.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

KS = (1, 5, 10)
BLOCK_SIZE = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class PairEmbeddings:
    """Unit vectors of images and captions.

    Attributes:
        images: one row per image.
        texts: one row per caption.
        image_of_text: index of each caption's image.
    """

    images: Float[np.ndarray, "N E"]
    texts: Float[np.ndarray, "M E"]
    image_of_text: Int[np.ndarray, " M"]


def recall(embeddings: PairEmbeddings, ks: Sequence[int] = KS, block_size: int = BLOCK_SIZE) -> dict[str, float]:
    """Return the fraction of queries with a correct candidate among the best k: `i2t_recall@k` and `t2i_recall@k`.

    Any of an image's captions is correct. An image without captions is a candidate but no query.

    Args:
        embeddings: of the evaluation set.
        ks: numbers of candidates.
        block_size: queries whose scores are held in memory at a time.
    """
    with_captions = np.unique(embeddings.image_of_text)
    ranks = {
        "i2t": _image_ranks(embeddings, block_size)[with_captions],
        "t2i": _text_ranks(embeddings, block_size),
    }
    return {f"{direction}_recall@{k}": float((rank < k).mean()) for direction, rank in ranks.items() for k in ks}


def _text_ranks(embeddings: PairEmbeddings, block_size: int) -> Int[np.ndarray, " M"]:
    """Return how many wrong images score at least as high as each caption's own."""
    ranks = np.empty(len(embeddings.texts), np.int64)
    for start in range(0, len(ranks), block_size):
        block = slice(start, start + block_size)
        scores = embeddings.texts[block] @ embeddings.images.T
        own = np.take_along_axis(scores, embeddings.image_of_text[block, None], 1)
        ranks[block] = (scores >= own).sum(1) - 1
    return ranks


def _image_ranks(embeddings: PairEmbeddings, block_size: int) -> Int[np.ndarray, " N"]:
    """Return how many captions of other images score at least as high as each image's best caption."""
    ranks = np.empty(len(embeddings.images), np.int64)
    for start in range(0, len(ranks), block_size):
        block = slice(start, start + block_size)
        scores = embeddings.images[block] @ embeddings.texts.T
        is_own = embeddings.image_of_text[None] == np.arange(len(ranks))[block, None]
        best = np.where(is_own, scores, -np.inf).max(1, initial=-np.inf, keepdims=True)
        ranks[block] = (~is_own & (scores >= best)).sum(1)
    return ranks

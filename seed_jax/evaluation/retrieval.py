"""Zero-shot retrieval: recall of an image's captions among all captions, and of a caption's image (spec A.11).

Scores are inner products of unit vectors, without re-ranking. A candidate whose score equals the correct one's is
ranked before it, so that codes which make images indistinguishable do not profit from ties.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from seed_jax.evaluation.metrics.recall import BLOCK_SIZE, ranks_by_embeddings


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


def recall(
    embeddings: PairEmbeddings, ks: Sequence[int] = (1, 5, 10), block_size: int = BLOCK_SIZE
) -> dict[str, float]:
    """Return the fraction of queries with a correct candidate among the best k: `i2t_recall@k` and `t2i_recall@k`.

    Any of an image's captions is correct. An image without captions is a candidate but no query.

    Args:
        embeddings: of the evaluation set.
        ks: numbers of candidates.
        block_size: queries whose scores are held in memory at a time.
    """
    ranks = ranks_by_embeddings(embeddings.images, embeddings.texts, embeddings.image_of_text, block_size)
    recalls = ranks.recalls(ks)
    return {name: value for name, value in recalls.items() if name != "mean_recall"}

"""Retrieval recall at k in both directions, with any number of captions for an image.

A candidate that scores as high as the right one counts as ranked before it, so that embeddings which make images
indistinguishable gain nothing by it.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from seed_jax.errors import UserError
from seed_jax.evaluation.metrics.clip_similarity import check_widths

BLOCK_SIZE = 1024  # queries whose scores are held in memory at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Ranks:
    """How many wrong candidates rank before the best right one, for each query.

    Image-to-text queries are the images that have captions, in the order of their numbers; text-to-image queries are
    the captions.
    """

    image_to_text: Int[np.ndarray, " images"]
    text_to_image: Int[np.ndarray, " texts"]

    def recalls(self, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
        """Return `i2t_recall@k` and `t2i_recall@k` from 0 to 1, and their mean as `mean_recall`."""
        recalls = {
            f"{direction}_recall@{k}": float((ranks < k).mean())
            for direction, ranks in (("i2t", self.image_to_text), ("t2i", self.text_to_image))
            for k in ks
        }
        return {**recalls, "mean_recall": float(np.mean(list(recalls.values())))}


def ranks_by_embeddings(
    images: Float[np.ndarray, "N E"],
    texts: Float[np.ndarray, "M E2"],
    image_of_text: Int[np.ndarray, " M2"],
    block_size: int = BLOCK_SIZE,
) -> Ranks:
    """Rank by the dot product of embeddings, which the caller has normalized.

    Args:
        images: an embedding for each image.
        texts: an embedding for each caption.
        image_of_text: the number of each caption's image.
        block_size: queries whose scores are held in memory at a time.
    """
    check_widths(images, texts, "images", "captions")
    return _ranks(
        lambda start, stop: images[start:stop] @ texts.T,
        lambda start, stop: texts[start:stop] @ images.T,
        len(images),
        len(texts),
        image_of_text,
        block_size,
    )


def ranks_by_scores(
    image_to_text: Float[np.ndarray, "N M"],
    image_of_text: Int[np.ndarray, " M2"],
    text_to_image: Float[np.ndarray, "M N"] | None = None,
) -> Ranks:
    """Rank by scores of every image with every caption.

    Args:
        image_to_text: the score of each caption, given an image.
        image_of_text: the number of each caption's image.
        text_to_image: the score of each image, given a caption; the transposed `image_to_text` by default.
    """
    other = image_to_text.T if text_to_image is None else text_to_image
    return _ranks(
        lambda start, stop: image_to_text[start:stop],
        lambda start, stop: other[start:stop],
        image_to_text.shape[0],
        image_to_text.shape[1],
        image_of_text,
        BLOCK_SIZE,
    )


def pointwise_mutual_information(
    conditional: Float[np.ndarray, "queries candidates"], prior: Float[np.ndarray, " candidates"], alpha: float = 1.0
) -> Float[np.ndarray, "queries candidates"]:
    """Return log p(candidate | query) - alpha log p(candidate): likely candidates do not win every query."""
    return conditional - alpha * prior


def _ranks(
    text_scores: Callable[[int, int], np.ndarray],
    image_scores: Callable[[int, int], np.ndarray],
    images: int,
    texts: int,
    image_of_text: Int[np.ndarray, " M2"],
    block_size: int,
) -> Ranks:
    if len(image_of_text) != texts:
        raise UserError(f"{texts} captions were scored, and {len(image_of_text)} have an image: give each caption one.")
    if not texts:
        raise UserError("There is no caption to retrieve: give at least one image with a caption.")
    if image_of_text.min() < 0 or image_of_text.max() >= images:
        raise UserError(
            f"Captions belong to images {image_of_text.min()} to {image_of_text.max()}, and there are {images} images."
        )
    image_ranks = np.empty(images, np.int64)
    for start in range(0, images, block_size):
        scores = text_scores(start, min(start + block_size, images))
        _check_numbers(scores)
        own = image_of_text[None] == np.arange(start, start + len(scores))[:, None]
        best = np.where(own, scores, -np.inf).max(1, keepdims=True)
        image_ranks[start : start + len(scores)] = (~own & (scores >= best)).sum(1)
    text_ranks = np.empty(texts, np.int64)
    for start in range(0, texts, block_size):
        scores = image_scores(start, min(start + block_size, texts))
        _check_numbers(scores)
        own = np.take_along_axis(scores, image_of_text[start : start + len(scores), None], 1)
        text_ranks[start : start + len(scores)] = (scores >= own).sum(1) - 1
    return Ranks(image_ranks[np.unique(image_of_text)], text_ranks)


def _check_numbers(scores: np.ndarray) -> None:
    if np.isnan(scores).any():
        raise UserError("A retrieval score is not a number: check the embeddings and the weights they come from.")

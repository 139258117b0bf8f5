"""Recall by literals: ranks in both directions, several captions per image, ties."""

import numpy as np
import pytest

from seed_jax.evaluation.retrieval import PairEmbeddings, recall


def embeddings(scores, image_of_text):
    """Make embeddings whose inner products are `scores` [images, captions]."""
    scores = np.asarray(scores, np.float32)
    return PairEmbeddings(scores, np.eye(scores.shape[1], dtype=np.float32), np.asarray(image_of_text))


def test_both_directions():
    recalls = recall(
        embeddings(
            [
                [0.9, 0.1, 0.2, 0.3],  # own captions 0 and 1: the best own caption is first
                [0.8, 0.0, 0.5, 0.1],  # own caption 2: one wrong caption before it
                [0.7, 0.6, 0.4, 0.2],  # own caption 3: three wrong captions before it
            ],
            [0, 0, 1, 2],
        ),
        ks=(1, 2, 3),
    )
    assert recalls["i2t_recall@1"] == pytest.approx(1 / 3)
    assert recalls["i2t_recall@2"] == recalls["i2t_recall@3"] == pytest.approx(2 / 3)
    # Ranks of the four captions' own images: 0, 1, 0, 1.
    assert recalls["t2i_recall@1"] == pytest.approx(2 / 4)
    assert recalls["t2i_recall@2"] == 1.0


def test_ties_count_as_wrong():
    recalls = recall(embeddings(np.ones((4, 4)), range(4)), ks=(1, 3, 4))
    assert recalls["i2t_recall@1"] == recalls["t2i_recall@1"] == 0.0
    assert recalls["i2t_recall@3"] == 0.0
    assert recalls["t2i_recall@4"] == 1.0


def test_images_without_captions_are_candidates_but_no_queries():
    recalls = recall(embeddings([[0.5, 0.1], [0.9, 0.9], [0.2, 0.6]], [0, 2]), ks=(1, 2))
    assert recalls["i2t_recall@1"] == 1.0
    assert recalls["t2i_recall@1"] == 0.0
    assert recalls["t2i_recall@2"] == 1.0


def test_the_block_size_does_not_change_the_result():
    rng = np.random.default_rng(0)
    image_of_text = np.sort(rng.integers(0, 30, 70))
    images, texts = (rng.standard_normal((count, 8)).astype(np.float32) for count in (30, 70))
    random = PairEmbeddings(images, texts, image_of_text)
    recalls = recall(random)
    assert recall(random, block_size=7) == recalls
    assert recalls["t2i_recall@10"] > recalls["t2i_recall@1"]

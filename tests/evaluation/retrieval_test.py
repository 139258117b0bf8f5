"""Recall by literals: ranks both ways, several captions, ties."""

import numpy as np
import pytest

from seed_jax.evaluation import retrieval
from seed_jax.evaluation.retrieval import Vectors, recall


def vectors(similarity, image_of_text):
    """Make vectors whose products are `similarity` [pictures, captions]."""
    similarity = np.asarray(similarity, np.float32)
    return Vectors(similarity, np.eye(similarity.shape[1], dtype=np.float32), np.asarray(image_of_text))


def test_both_ways_by_hand():
    found = recall(
        vectors(
            [
                [0.9, 0.1, 0.2, 0.3],  # own captions 0 and 1: best own is first
                [0.8, 0.0, 0.5, 0.1],  # own caption 2: one wrong before it
                [0.7, 0.6, 0.4, 0.2],  # own caption 3: three wrong before it
            ],
            [0, 0, 1, 2],
        ),
        ks=(1, 2, 3),
    )
    assert found["i2t_recall@1"] == pytest.approx(1 / 3)
    assert found["i2t_recall@2"] == found["i2t_recall@3"] == pytest.approx(2 / 3)
    # Own pictures' ranks of the four captions: 0, 1, 0, 1.
    assert found["t2i_recall@1"] == pytest.approx(2 / 4)
    assert found["t2i_recall@2"] == 1.0


def test_ties_count_against():
    found = recall(vectors(np.ones((4, 4)), range(4)), ks=(1, 3, 4))
    assert found["i2t_recall@1"] == found["t2i_recall@1"] == 0.0
    assert found["i2t_recall@3"] == 0.0
    assert found["t2i_recall@4"] == 1.0


def test_pictures_without_captions_are_candidates_but_no_queries():
    found = recall(vectors([[0.5, 0.1], [0.9, 0.9], [0.2, 0.6]], [0, 2]), ks=(1, 2))
    assert found["i2t_recall@1"] == 1.0
    assert found["t2i_recall@1"] == 0.0
    assert found["t2i_recall@2"] == 1.0


def test_blocks_of_queries_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    owners = np.sort(rng.integers(0, 30, 70))
    made = Vectors(
        rng.standard_normal((30, 8)).astype(np.float32), rng.standard_normal((70, 8)).astype(np.float32), owners
    )
    whole = recall(made)
    monkeypatch.setattr(retrieval, "_ROWS", 7)
    assert recall(made) == whole
    assert whole["t2i_recall@10"] > whole["t2i_recall@1"]

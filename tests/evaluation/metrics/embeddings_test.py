"""CLIP similarity, CMMD and retrieval recall by literals and by brute force."""

import numpy as np
import pytest

from seed_jax.errors import UserError
from seed_jax.evaluation.metrics import clip_similarity, recall
from seed_jax.evaluation.metrics.cmmd import cmmd


def normal(key, *shape):
    return np.random.Generator(np.random.Philox(key)).standard_normal(shape)


def test_paired_similarity_by_hand():
    similarity = clip_similarity.paired_similarity(
        np.array([[1.0, 0.0], [3.0, 4.0]]), np.array([[2.0, 0.0], [0.0, 1.0]])
    )
    np.testing.assert_allclose(similarity, [1.0, 0.8])


def test_embeddings_of_different_models_are_an_error():
    with pytest.raises(UserError, match=r"768.*512"):
        clip_similarity.paired_similarity(normal(1, 3, 768), normal(1, 3, 512))
    with pytest.raises(UserError, match=r"768.*512"):
        cmmd(normal(1, 3, 768), normal(1, 3, 512))


def test_zero_embeddings_are_an_error():
    with pytest.raises(UserError, match="zero or not finite"):
        clip_similarity.paired_similarity(np.zeros((1, 4)), np.ones((1, 4)))


def test_cmmd_is_the_biased_estimate_with_the_papers_constants():
    x, y = normal(2, 1500, 8), normal(3, 40, 8) + 1
    x_unit, y_unit = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))

    def kernel(a, b):
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * 10**2)).mean()

    expected = 1000 * (kernel(x_unit, x_unit) + kernel(y_unit, y_unit) - 2 * kernel(x_unit, y_unit))
    assert cmmd(x, y) == pytest.approx(expected, rel=1e-9)
    assert cmmd(x, x) == pytest.approx(0, abs=1e-9)


def test_cmmd_of_one_image_is_an_error():
    with pytest.raises(UserError, match="at least two"):
        cmmd(normal(4, 1, 8), normal(4, 5, 8))


def test_recall_both_ways_by_hand():
    scores = np.array(
        [
            [0.9, 0.1, 0.2, 0.3],  # own captions 0 and 1: the best own one is first
            [0.8, 0.0, 0.5, 0.1],  # own caption 2: one wrong before it
            [0.7, 0.6, 0.4, 0.2],  # own caption 3: three wrong before it
        ]
    )
    ranks = recall.ranks_by_scores(scores, np.array([0, 0, 1, 2]))
    np.testing.assert_array_equal(ranks.image_to_text, [0, 1, 3])
    np.testing.assert_array_equal(ranks.text_to_image, [0, 1, 0, 1])
    recalls = ranks.recalls((1, 2))
    assert recalls["i2t_recall@1"] == pytest.approx(1 / 3)
    assert recalls["t2i_recall@2"] == 1.0
    assert recalls["mean_recall"] == pytest.approx((1 / 3 + 2 / 3 + 1 / 2 + 1) / 4)


def test_ranks_by_embeddings_of_many_images_are_those_of_a_sort():
    images, texts = normal(5, 1100, 6), normal(6, 2500, 6)
    image_of_text = np.random.Generator(np.random.Philox(7)).integers(0, 1100, 2500)
    ranks = recall.ranks_by_embeddings(images, texts, image_of_text)
    scores = images @ texts.T
    queries = np.unique(image_of_text)
    order = np.argsort(-scores[queries], axis=1)
    expected = (image_of_text[order] == queries[:, None]).argmax(1)
    np.testing.assert_array_equal(ranks.image_to_text, expected)
    order = np.argsort(-scores.T, axis=1)
    np.testing.assert_array_equal(ranks.text_to_image, (order == image_of_text[:, None]).argmax(1))


def test_ties_count_against_retrieval():
    recalls = recall.ranks_by_scores(np.ones((4, 4)), np.arange(4)).recalls((1, 3, 4))
    assert recalls["i2t_recall@3"] == recalls["t2i_recall@3"] == 0.0
    assert recalls["i2t_recall@4"] == recalls["t2i_recall@4"] == 1.0


def test_mutual_information_removes_a_candidate_that_is_likely_for_every_query():
    conditional = np.array([[-5.0, -1.0], [-6.0, -2.0]])  # the second caption is likely whatever the image
    prior = np.array([-9.0, -1.0])
    corrected = recall.pointwise_mutual_information(conditional, prior)
    np.testing.assert_array_equal(conditional.argmax(1), [1, 1])
    np.testing.assert_allclose(corrected, [[4, 0], [3, -1]])


@pytest.mark.parametrize(
    ("image_of_text", "message"), [([0, 1], "3 captions"), ([0, 1, 2], "0 to 2"), ([-1, 0, 1], "-1 to 1")]
)
def test_captions_without_an_image_are_an_error(image_of_text, message):
    with pytest.raises(UserError, match=message):
        recall.ranks_by_scores(np.ones((2, 3)), np.array(image_of_text))


def test_scores_that_are_not_numbers_are_an_error():
    with pytest.raises(UserError, match="not a number"):
        recall.ranks_by_scores(np.full((2, 2), np.nan), np.array([0, 1]))

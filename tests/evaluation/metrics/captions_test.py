"""BLEU, ROUGE-L and CIDEr equal to pycocoevalcap's."""

import numpy as np
import pytest

from seed_jax.evaluation.metrics.bleu import bleu
from seed_jax.evaluation.metrics.cider import cider
from seed_jax.evaluation.metrics.ngrams import count_ngrams
from seed_jax.evaluation.metrics.ptb import tokenize
from seed_jax.evaluation.metrics.rouge import rouge_l
from tests.support import golden


@pytest.fixture(scope="module")
def recorded():
    return golden.load_json("evaluation/caption_metrics.json")


@pytest.fixture(scope="module")
def tokenized(recorded):
    order = recorded["order"]
    flat = iter(tokenize([caption for image in order for caption in recorded["references"][image]]))
    references = [[next(flat) for _ in recorded["references"][image]] for image in order]
    return tokenize([recorded["candidates"][image] for image in order]), references


def test_bleu(recorded, tokenized):
    whole, per_image = bleu(count_ngrams(*tokenized))
    for n in range(1, 5):
        assert whole[n - 1] == pytest.approx(recorded["scores"][f"Bleu_{n}"], abs=1e-12)
        np.testing.assert_allclose(per_image[n - 1], recorded["per_image"][f"Bleu_{n}"], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "metric"), [("CIDEr", lambda *captions: cider(count_ngrams(*captions))), ("ROUGE_L", rouge_l)]
)
def test_cider_and_rouge(recorded, tokenized, name, metric):
    whole, per_image = metric(*tokenized)
    assert whole == pytest.approx(recorded["scores"][name], abs=1e-12)
    np.testing.assert_allclose(per_image, recorded["per_image"][name], rtol=0, atol=1e-12)


def test_no_break_space_is_inside_a_token_for_rouge_only():
    candidate, references = ["add 1\u00a01/2 cups"], [["add 1 1/2 cups"]]
    assert rouge_l(candidate, references)[0] < 1
    assert bleu(count_ngrams(candidate, references))[0][0] == pytest.approx(1)


def test_empty_captions():
    assert rouge_l([""], [[""]])[0] == 1.0
    assert rouge_l([""], [["a dog"]])[0] == 0.0
    assert cider(count_ngrams(["", "a cat"], [["a dog"], ["a cat"]]))[1][0] == 0.0
    assert bleu(count_ngrams([""], [["a dog"]]))[0][0] == pytest.approx(0, abs=1e-5)


def test_cider_of_one_image_is_zero_as_its_words_are_in_every_image():
    assert cider(count_ngrams(["a dog runs"], [["a dog runs"]]))[0] == 0.0


def test_bleu_compares_with_the_shorter_of_two_equally_close_references():
    # Three words between references of two and four: with the shorter one there is no penalty.
    assert bleu(count_ngrams(["a b c"], [["a b c d", "a b"]]))[0][0] == pytest.approx(1)


def test_rouge_by_hand():
    # The common subsequence "a c" of the candidate's 3 and the reference's 4 words: P = 2/3, R = 1/2.
    score = 2.44 * (2 / 3) * 0.5 / (0.5 + 1.44 * 2 / 3)
    assert rouge_l(["a c b"], [["a d c e"]])[0] == pytest.approx(score)

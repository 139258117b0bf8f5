"""Scores of continuations equal transformers' log-probabilities, in any batch; codes among codes."""

import numpy as np
import pytest
import torch

from seed_jax.errors import UserError
from seed_jax.inference.generation.generator import Generator
from seed_jax.inference.generation.scoring import Score, Scorer
from tests.inference.generation.cases import SMALL, as_transformers, from_transformers, prompts, vocabulary

# float32 sums in another order: a few units in the last place (2**-20) of logits up to 12
ROUNDING = 5e-5
CHOICES = [[[5, 6, 7], [9]], [[5], [6], [7, 8]], [[100, 2]]]


@pytest.fixture(scope="module")
def pair():
    reference = as_transformers(SMALL, 1)
    return reference, Scorer(Generator(SMALL, from_transformers(reference, SMALL), vocabulary()))


def expected(reference, prompt, ids, keep=slice(None)) -> list[float]:
    with torch.no_grad():
        logits = reference(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1, keep]
    start = keep.start or 0
    return torch.log_softmax(logits, -1)[range(len(ids)), [token - start for token in ids]].tolist()


def test_log_probabilities_equal_transformers_for_unequal_prompts_and_continuations(pair):
    reference, scorer = pair
    found = scorer.score(prompts(3), CHOICES)
    assert [len(scores) for scores in found] == [2, 3, 1]
    for prompt, group, scores in zip(prompts(3), CHOICES, found, strict=True):
        for ids, score in zip(group, scores, strict=True):
            np.testing.assert_allclose(score.log_probs, expected(reference, prompt, ids), atol=ROUNDING)
    ((alone, *_),) = scorer.score(prompts(1), CHOICES[:1])
    np.testing.assert_allclose(alone.log_probs, found[0][0].log_probs, atol=ROUNDING)


def test_codes_of_an_image_are_scored_among_all_codes(pair):
    reference, scorer = pair
    words, codes = vocabulary(), list(range(3, 35))
    ((score,),) = scorer.score_images(prompts(1), [[codes]])
    ids = [words.first_code + code for code in codes]
    among = slice(words.first_code, words.first_code + words.num_codes)
    np.testing.assert_allclose(
        score.log_probs, expected(reference, [*prompts(1)[0], words.boi], ids, among), atol=ROUNDING
    )


def test_ranking_is_by_the_mean(pair):
    _, scorer = pair
    (scores,) = scorer.score(prompts(1), CHOICES[1:2])
    means = [score.mean for score in scores]
    assert scorer.rank(prompts(1)[0], CHOICES[1]) == sorted(range(3), key=lambda i: -means[i])
    assert Score((-1.0, -2.0)).mean == -1.5


def test_bad_requests(pair):
    _, scorer = pair
    for arguments, message in [
        (([[1]], []), "1 prompts but continuations for 0"),
        (([[1]], [[[]]]), "Prompt 1: expected a prompt and continuations of at least one token"),
        (([[1] * 100], [[[5] * 29]]), "Prompt 1 with its longest continuation has 129 tokens, the context 128"),
        (([[1]], [[[366]]]), "outside 0 to 365"),
    ]:
        with pytest.raises(UserError, match=message):
            scorer.score(*arguments)

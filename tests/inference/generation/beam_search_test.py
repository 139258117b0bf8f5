"""Beam search: transformers' ids, in a batch or alone; the grammar in it; sampled beams by distribution."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest
import torch

from seed_jax.errors import UserError
from seed_jax.inference.generation.batching import Request
from seed_jax.inference.generation.generator import Generator
from seed_jax.inference.generation.sampling_params import SamplingParams
from tests.inference.generation.cases import (
    SMALL,
    as_transformers,
    from_transformers,
    golden_generator,
    golden_transformers,
    images_of,
    prompts,
    small,
    vocabulary,
)
from tests.support import golden

EARLY = {"heuristic": False, "first": True, "never": "never"}


@pytest.fixture(scope="module")
def pair():
    reference = as_transformers(SMALL, 7)
    return reference, Generator(SMALL, from_transformers(reference, SMALL), vocabulary())


def expected_ids(reference, prompt, tokens=16, **options) -> list[int]:
    """Return what transformers generates, without EOS and the padding after it."""
    options = {"do_sample": False, "eos_token_id": 2, "pad_token_id": 0} | options
    found = reference.generate(torch.tensor([prompt]), max_new_tokens=tokens, **options)
    ids = found[0, len(prompt) :].tolist()
    return ids[: ids.index(2)] if 2 in ids else ids


@pytest.mark.parametrize(("penalty", "early"), [(1.0, "heuristic"), (0.0, "never"), (2.0, "never"), (-1.0, "first")])
def test_ids_equal_transformers(pair, penalty, early):
    reference, generator = pair
    settings = SamplingParams(16, mode="none", beams=4, length_penalty=penalty, early_stopping=early)
    answers = generator.generate(prompts(4), settings)
    options = {"num_beams": 4, "length_penalty": penalty, "early_stopping": EARLY[early]}
    for prompt, answer in zip(prompts(4), answers, strict=True):
        assert list(answer.ids) == expected_ids(reference, prompt, **options)
    assert {answer.finish_reason for answer in answers} == {"eos", "length"} or penalty < 0


def test_ids_of_the_recorded_model_equal_transformers():
    prompt = golden.tensors("llama_tiny/generation.safetensors")["prompt"][0].tolist()
    reference = golden_transformers()
    (answer,) = golden_generator().generate([prompt], max_new_tokens=12, mode="none", beams=5)
    assert list(answer.ids) == expected_ids(reference, prompt, 12, num_beams=5)


def test_rows_of_one_batch_may_have_penalties_of_their_own(pair):
    _, generator = pair
    requests = [
        Request(prompt, SamplingParams(16 - i, mode="none", beams=4, length_penalty=i - 1.0, early_stopping="never"))
        for i, prompt in enumerate(prompts(3))
    ]
    requests.append(Request(prompts(4)[3], SamplingParams(16, mode="none", beams=4, temperature=1.0, seed=3)))
    together = generator.generate(requests)
    for request, answer in zip(requests, together, strict=True):
        (alone,) = generator.generate([request])
        assert (alone.ids, alone.finish_reason) == (answer.ids, answer.finish_reason)
        assert alone.score == pytest.approx(answer.score, rel=1e-5)  # sums of float32 in another order


def test_the_score_is_the_log_probability_by_the_penalty(pair):
    reference, generator = pair
    (answer,) = generator.generate(prompts(1), max_new_tokens=9, mode="none", beams=3, length_penalty=0.5)
    ids = torch.tensor([prompts(1)[0] + list(answer.ids) + [2] * (answer.finish_reason == "eos")])
    with torch.no_grad():
        scores = torch.log_softmax(reference(ids).logits[0, :-1], -1)
    start = len(prompts(1)[0])
    total = float(scores[torch.arange(start - 1, ids.shape[1] - 1), ids[0, start:]].sum())
    assert answer.score == pytest.approx(total / (ids.shape[1] - start) ** 0.5, rel=1e-4)


@pytest.mark.slow
def test_every_image_is_whole_under_guidance_too():
    wanted = [
        SamplingParams(80, beams=3, temperature=t, num_images=1, guidance_scale=s)
        for t in (0.0, 1.5)
        for s in (0.5, 3.0)
    ]
    answers = small().generate([Request(prompt, wanted[i % 4]) for i, prompt in enumerate(prompts(16))])
    assert [images_of(answer) for answer in answers] == [1] * 16


def log_probs_after(reference, ids: list[int], temperature: float, top_k: int) -> dict[int, float]:
    """Return what a beam gains by each token: log p / temperature of the k most likely tokens."""
    with torch.no_grad():
        scores = torch.log_softmax(reference(torch.tensor([ids])).logits[0, -1], -1).numpy()
    return {int(token): float(scores[token]) / temperature for token in np.argsort(-scores)[:top_k]}


@pytest.mark.slow
def test_sampled_beams_follow_the_distribution_of_beam_sampling(pair):
    """The distribution is computed exactly: no EOS is among the candidates, so two steps can be enumerated."""
    reference, generator = pair
    prompt, count, temperature, top_k = prompts(1)[0], 800, 1.7, 3
    first = log_probs_after(reference, prompt, temperature, top_k)
    # All three first tokens are drawn as candidates, and the two best go on.
    running = sorted(first, key=lambda token: -first[token])[:2]
    totals = {
        (token, later): first[token] + gain
        for token in running
        for later, gain in log_probs_after(reference, [*prompt, token], temperature, top_k).items()
    }
    assert 2 not in {*first, *(later for _, later in totals)}
    # The answer is the better one of the first two candidates, drawn without replacement.
    weight = sum(np.exp(list(totals.values())))
    share = {ids: np.exp(total) / weight for ids, total in totals.items()}
    expected = dict.fromkeys(totals, 0.0)
    for one, other in itertools.permutations(totals, 2):
        better = max(one, other, key=totals.get)
        expected[better] += share[one] * share[other] / (1 - share[one])
    assert sum(probability > 0.02 for probability in expected.values()) > 3
    params = SamplingParams(2, mode="none", beams=2, temperature=temperature, top_k=top_k)
    requests = [Request(prompt, dataclasses.replace(params, seed=seed)) for seed in range(count)]
    sampled = collections.Counter(answer.ids for answer in generator.generate(requests))
    assert set(sampled) <= set(expected)
    # Six outcomes: the sum of the differences has a mean below sqrt(2 * 6 / (pi * 800)) = 0.07 and a spread of 0.02.
    difference = sum(abs(sampled[ids] / count - probability) for ids, probability in expected.items())
    assert difference < 0.14
    assert generator.generate(requests[:3]) == generator.generate(requests[:3])


def test_a_stop_string_ends_a_beam():
    generator = small()
    # Without a length penalty a beam that ends early beats its own continuations.
    params = SamplingParams(24, mode="text", beams=3, length_penalty=0.0)
    free = generator.generate(prompts(6), params)
    texts = ["".join(segment.text for segment in answer.segments) for answer in free]
    # Only letters: bytes that form no character are decoded as a replacement character, which no token contains.
    stop = next(t[i : i + 2] for t in texts for i in range(2, len(t) - 2) if t[i : i + 2].isalpha())
    answers = generator.generate(prompts(6), params, stop=(stop,))
    assert all(stop not in segment.text for answer in answers for segment in answer.segments)
    assert "stop" in {answer.finish_reason for answer in answers}


def test_bad_settings():
    for changes, message in [
        ({"beams": 0}, "beams is 0"),
        ({"early_stopping": "soon"}, "early_stopping is soon"),
        ({"length_penalty": float("nan")}, "length_penalty is nan"),
    ]:
        with pytest.raises(UserError, match=message):
            small().generate(prompts(1), **changes)

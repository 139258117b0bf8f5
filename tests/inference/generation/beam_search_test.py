"""Beam search: transformers' ids, in a batch or alone; the grammar in it; drawn beams by distribution."""

import collections

import pytest
import torch

from seed_jax.errors import UserError
from seed_jax.inference.generation.generator import Generator, Request, Settings
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
    reference = as_transformers(SMALL, 1)
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
    settings = Settings(16, mode="none", beams=4, length_penalty=penalty, early_stopping=early)
    answers = generator.generate(prompts(4), settings)
    options = {"num_beams": 4, "length_penalty": penalty, "early_stopping": EARLY[early]}
    for prompt, answer in zip(prompts(4), answers, strict=True):
        assert list(answer.ids) == expected_ids(reference, prompt, **options)
    assert {answer.stopped for answer in answers} == {"eos", "length"} or penalty < 0


def test_ids_of_the_recorded_model_equal_transformers():
    prompt = golden.tensors("llama_tiny/generation.safetensors")["prompt"][0].tolist()
    reference = golden_transformers()
    (answer,) = golden_generator().generate([prompt], max_new_tokens=12, mode="none", beams=5)
    assert list(answer.ids) == expected_ids(reference, prompt, 12, num_beams=5)


def test_rows_of_one_batch_may_have_penalties_of_their_own(pair):
    _, generator = pair
    requests = [
        Request(prompt, Settings(16 - i, mode="none", beams=4, length_penalty=i - 1.0, early_stopping="never"))
        for i, prompt in enumerate(prompts(3))
    ]
    requests.append(Request(prompts(4)[3], Settings(16, mode="none", beams=4, temperature=1.0, seed=3)))
    together = generator.generate(requests)
    for request, answer in zip(requests, together, strict=True):
        (alone,) = generator.generate([request])
        assert (alone.ids, alone.stopped) == (answer.ids, answer.stopped)
        assert alone.score == pytest.approx(answer.score, rel=1e-5)  # sums of float32 in another order


def test_the_score_is_the_log_probability_by_the_penalty(pair):
    reference, generator = pair
    (answer,) = generator.generate(prompts(1), max_new_tokens=9, mode="none", beams=3, length_penalty=0.5)
    ids = torch.tensor([prompts(1)[0] + list(answer.ids) + [2] * (answer.stopped == "eos")])
    with torch.no_grad():
        scores = torch.log_softmax(reference(ids).logits[0, :-1], -1)
    start = len(prompts(1)[0])
    total = float(scores[torch.arange(start - 1, ids.shape[1] - 1), ids[0, start:]].sum())
    assert answer.score == pytest.approx(total / (ids.shape[1] - start) ** 0.5, rel=1e-4)


def test_every_image_is_whole_under_guidance_too():
    wanted = [Settings(80, beams=3, temperature=t, images=1, guidance_scale=s) for t in (0.0, 1.5) for s in (0.5, 3.0)]
    answers = small().generate([Request(prompt, wanted[i % 4]) for i, prompt in enumerate(prompts(16))])
    assert [images_of(answer) for answer in answers] == [1] * 16


def test_drawn_beams_follow_transformers_distribution(pair):
    reference, generator = pair
    prompt, count = prompts(1)[0], 800
    torch.manual_seed(0)
    options = {"do_sample": True, "num_beams": 2, "temperature": 1.7, "top_k": 3, "eos_token_id": 2}
    drawn = reference.generate(torch.tensor([prompt] * count), max_new_tokens=2, pad_token_id=0, **options)
    expected = collections.Counter(tuple(row[len(prompt) :].tolist()) for row in drawn)
    settings = {"mode": "none", "beams": 2, "temperature": 1.7, "top_k": 3}
    requests = [Request(prompt, Settings(2, seed=seed, **settings)) for seed in range(count)]
    found = collections.Counter(answer.ids for answer in generator.generate(requests))
    assert len(expected) > 3
    # Two samples of 800: the sum of differences of shares has a mean near 0.07; 0.16 is far beyond its spread.
    difference = sum(abs(found[ids] - expected[ids]) for ids in found | expected) / count
    assert difference < 0.16
    assert generator.generate(requests[:3]) == generator.generate(requests[:3])


def test_a_stop_string_ends_a_beam():
    generator = small()
    free = generator.generate(prompts(6), max_new_tokens=24, mode="text", beams=3)
    texts = ["".join(segment.text for segment in answer.segments) for answer in free]
    # Bytes that make no character are shown as a sign of their own, which is in no token.
    stop = next(t[i : i + 2] for t in texts for i in range(2, len(t) - 2) if t[i : i + 2].isalpha())
    answers = generator.generate(prompts(6), max_new_tokens=24, mode="text", beams=3, stop=(stop,))
    assert all(stop not in segment.text for answer in answers for segment in answer.segments)
    assert "stop" in {answer.stopped for answer in answers}


def test_bad_settings():
    for changes, message in [
        ({"beams": 0}, "beams is 0, expected at least 1"),
        ({"early_stopping": "soon"}, "early_stopping is soon, expected one of heuristic, first, never"),
        ({"length_penalty": float("nan")}, "length_penalty is nan"),
    ]:
        with pytest.raises(UserError, match=message):
            small().generate(prompts(1), **changes)

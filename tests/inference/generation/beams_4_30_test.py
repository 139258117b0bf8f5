"""Beam search by the length rule of transformers 4.30.2, the original's version, on recorded answers."""

import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seed_jax.convert.key_table import assemble
from seed_jax.convert.llama.key_table import abstract_params, key_table
from seed_jax.convert.tensors import open_tensors
from seed_jax.errors import UserError
from seed_jax.inference.generation.batching import Request
from seed_jax.inference.generation.generator import Generator
from seed_jax.inference.generation.sampling_params import SamplingParams
from tests.inference.generation.cases import GOLDEN, prompts, small, vocabulary
from tests.support import golden


@functools.cache
def cases() -> list[dict[str, Any]]:
    """Return the recorded cases, or those of the file that SEED_JAX_BEAM_CASES names."""
    given = os.environ.get("SEED_JAX_BEAM_CASES")
    path = Path(given) if given else golden.path("beams_4_30/cases.json")
    return json.loads(path.read_text(encoding="utf-8"))


def generator(eos_times: float) -> Generator:
    """Return the recorded model with the row of EOS in its head multiplied, so that answers end early."""
    tensors = open_tensors(golden.path("llama_tiny/weights.safetensors"))
    params = assemble(key_table(GOLDEN), tensors, abstract_params(GOLDEN))
    kernel = np.array(params["lm_head"]["kernel"])
    kernel[:, 2] *= np.float32(eos_times)
    params["lm_head"]["kernel"] = kernel
    return Generator(GOLDEN, params, vocabulary())


@pytest.mark.slow
def test_ids_and_scores_equal_the_recorded_ones():
    differing = []
    for eos_times in sorted({case.get("lm_head_row_2_times", 1.0) for case in cases()}):
        chosen = [case for case in cases() if case.get("lm_head_row_2_times", 1.0) == eos_times]
        requests = [
            Request(
                case["prompt"],
                SamplingParams(
                    case["max_new_tokens"],
                    mode="none",
                    beams=case["beams"],
                    length_penalty=case["length_penalty"],
                    length_penalty_on="sequence",
                    early_stopping=case["early_stopping"],
                ),
            )
            for case in chosen
        ]
        for case, answer in zip(chosen, generator(eos_times).generate(requests), strict=True):
            ids = [*answer.ids, *[2] * (answer.finish_reason == "eos")]  # recorded answers end with EOS
            if ids != case["answer"] or answer.score != pytest.approx(case["score"], rel=1e-5, abs=1e-5):
                differing.append((case, answer.ids, answer.score))
    assert len(cases()) > 0
    assert differing == []


def test_both_rules_share_a_batch_and_are_equal_without_a_penalty():
    def answer(on: str, penalty: float):
        params = SamplingParams(12, mode="none", beams=4, length_penalty=penalty, length_penalty_on=on)
        return [Request(prompt, params) for prompt in prompts(6)]

    both = small().generate(answer("answer", 1.0) + answer("sequence", 1.0))
    alone = small().generate(answer("sequence", 1.0))
    assert [one.ids for one in both[6:]] == [one.ids for one in alone]
    # Without early ends the two rules differ by the prompt's length alone.
    for one, other, prompt in zip(both[:6], both[6:], prompts(6), strict=True):
        if one.ids == other.ids and one.finish_reason == "length":
            assert one.score * 12 == pytest.approx(other.score * (12 + len(prompt)), rel=1e-4)


def test_an_unknown_rule_is_refused():
    with pytest.raises(UserError, match="length_penalty_on is prompt"):
        SamplingParams(length_penalty_on="prompt")

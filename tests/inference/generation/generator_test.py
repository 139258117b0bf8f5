"""Generation: the recorded greedy ids, transformers, the grammar at work, independence of neighbours, buckets."""

import dataclasses
import json
import re
import signal

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch

from seed_jax import sharding
from seed_jax.checkpoint import model_dir
from seed_jax.errors import UserError
from seed_jax.inference.generation.batching import Request, bucket
from seed_jax.inference.generation.generator import CHUNK_TOKENS, Generator
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.generation.segments import ImageSegment, TextSegment
from seed_jax.models.llama.block import LORA_TARGETS
from seed_jax.models.llama.model import LlamaConfig, unstack_layers
from seed_jax.models.nn import lora
from seed_jax.models.nn.lora import LoraSpec
from seed_jax.precision import Precision
from tests.inference.generation.cases import (
    SMALL,
    as_transformers,
    from_transformers,
    golden_generator,
    images_of,
    prompts,
    small,
    small_params,
    vocabulary,
)
from tests.support import golden

# A batch whose rows differ in everything that may differ.
MIXED = [
    SamplingParams(33),
    SamplingParams(40, temperature=1.0, seed=3),
    SamplingParams(40, temperature=0.8, top_k=20, seed=4, mode="image"),
    SamplingParams(60, temperature=1.3, top_p=0.8, seed=5, mode="some"),
    SamplingParams(36, temperature=0.5, min_p=0.1, seed=2**32 - 1, num_images=1),
    SamplingParams(40, temperature=1.0, seed=3, mode="text"),
    SamplingParams(64, temperature=1.0, seed=7, mode="none"),
]


def test_greedy_ids_equal_the_original():
    recorded = golden.tensors("llama_tiny/generation.safetensors")
    generator = golden_generator()
    # Recorded with padding on the left; ours is on the right.
    batch = [
        row[mask == 1].tolist()
        for row, mask in zip(recorded["batch_input_ids"], recorded["batch_attention_mask"], strict=True)
    ]
    assert len({len(prompt) for prompt in batch}) == 2
    expected = [recorded["sequence"][0, 38:].tolist(), *recorded["batch_sequence"][:, 38:].tolist()]
    answers = generator.generate([*recorded["prompt"].tolist(), *batch], max_new_tokens=24, mode="none")
    assert [list(answer.ids) for answer in answers] == expected


@pytest.mark.parametrize("seed", [7, 2])
def test_greedy_ids_equal_transformers_with_eos(seed):
    reference = as_transformers(SMALL, seed)
    generator = Generator(SMALL, from_transformers(reference, SMALL), vocabulary())
    answers = generator.generate(prompts(8), max_new_tokens=20, mode="none")
    for prompt, answer in zip(prompts(8), answers, strict=True):
        found = reference.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=2)
        expected = found[0, len(prompt) :].tolist()
        assert list(answer.ids) + ([2] if answer.finish_reason == "eos" else []) == expected
    assert seed != 7 or {answer.finish_reason for answer in answers} == {"eos", "length"}


def test_guided_ids_equal_transformers():
    reference = as_transformers(SMALL, 7)
    generator = Generator(SMALL, from_transformers(reference, SMALL), vocabulary())
    negatives = prompts(4, seed=9)
    for scale in (2.5, 0.0):
        settings = SamplingParams(16, mode="none", guidance_scale=scale)
        requests = [Request(p, settings, n) for p, n in zip(prompts(4), negatives, strict=True)]
        for request, answer in zip(requests, generator.generate(requests), strict=True):
            ids, negative = torch.tensor([request.prompt]), torch.tensor([request.negative_prompt])
            options = {"guidance_scale": scale, "negative_prompt_ids": negative, "eos_token_id": 2, "do_sample": False}
            # transformers passes a scale of 0 on only through the negative prompt itself.
            found = reference.generate(ids, max_new_tokens=16, **options)[0, ids.shape[1] :].tolist()
            assert list(answer.ids) + ([2] if answer.finish_reason == "eos" else []) == found


@pytest.mark.parametrize("mode", ["free", "image", "some", "text"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_every_image_is_whole(mode, temperature):
    answers = small().generate(prompts(64), max_new_tokens=64, mode=mode, temperature=temperature)
    counts = [images_of(answer) for answer in answers]
    assert mode not in ("image", "some") or min(counts) == 1
    assert mode != "image" or all(isinstance(answer.segments[0], ImageSegment) for answer in answers)
    assert (sum(counts) > 0) == (mode != "text")


@pytest.mark.parametrize(("count", "budget"), [(0, 40), (1, 37), (1, 64)])
def test_exactly_so_many_images(count, budget):
    answers = small().generate(prompts(64), max_new_tokens=budget, num_images=count, temperature=1.5)
    assert {images_of(answer) for answer in answers} == {count}


def test_without_the_grammar_the_same_model_makes_malformed_images():
    answers = small().generate(prompts(64), max_new_tokens=64, mode="none")
    kinds = {segment.to_dict()["type"] for answer in answers for segment in answer.segments}
    assert "malformed" in kinds


def test_an_answer_depends_on_its_own_prompt_seed_and_settings_only():
    requests = [Request(prompt, one) for prompt, one in zip(prompts(7), MIXED, strict=True)]
    together = small().generate(requests)
    assert together[::-1] == small().generate(requests[::-1])
    assert together == small().generate(requests, batch_size=1)
    # Seeds and settings matter.
    assert len({answer.ids for answer in together}) == 7
    again = [dataclasses.replace(requests[1], sampling_params=dataclasses.replace(MIXED[1], seed=8))]
    assert small().generate(again)[0].ids != together[1].ids


def test_a_mixed_batch_needs_no_recompilation():
    requests = [Request(prompt, one) for prompt, one in zip(prompts(7), MIXED, strict=True)]
    small().generate(requests)
    compiled = small().programs.decode._cache_size()
    small().generate([Request(prompt, one) for prompt, one in zip(prompts(7, seed=5), MIXED[::-1], strict=True)])
    assert small().programs.decode._cache_size() == compiled


def test_one_compilation_serves_a_bucket():
    config = dataclasses.replace(SMALL, max_length=120)  # no other test has these sizes, whose programs it would share
    generator = Generator(config, small_params(), vocabulary())
    for count, tokens in [(3, 40), (4, 64), (3, 33)]:
        generator.generate(prompts(count, seed=count), max_new_tokens=tokens)
    assert (generator.programs.prefill._cache_size(), generator.programs.decode._cache_size()) == (1, 1)
    generator.generate(prompts(3), max_new_tokens=65)
    assert generator.programs.decode._cache_size() == 2
    assert [bucket(size, 100) for size in (1, 32, 33, 64, 65, 100)] == [32, 32, 64, 64, 100, 100]
    assert [bucket(size, smallest=1) for size in (1, 2, 3, 8, 9)] == [1, 2, 4, 8, 16]


def test_other_weights_of_the_same_sizes_need_no_compilation():
    def answers(generator):
        return generator.generate(prompts(3), max_new_tokens=40)

    one = Generator(SMALL, small_params(), vocabulary())
    first = answers(one)
    compiled = one.programs.prefill._cache_size(), one.programs.decode._cache_size()
    other = Generator(SMALL, jax.tree.map(lambda leaf: -leaf, small_params()), vocabulary())
    assert answers(other) != first
    assert (other.programs.prefill._cache_size(), other.programs.decode._cache_size()) == compiled
    assert answers(one) == first
    assert golden_generator().programs is not one.programs


def test_an_image_begun_in_the_prompt_is_finished():
    words = vocabulary()
    prompt = [1, 50, words.boi, *[words.first_code] * 30]
    (answer,) = small().generate([prompt], max_new_tokens=5, mode="text")
    codes = [words.code_of(token) for token in answer.ids]
    assert all(code is not None for code in codes[:2])
    assert answer.ids[2] == words.eoi
    assert all(code is None for code in codes[2:])


def test_the_context_ends_an_answer():
    (answer,) = small().generate([[1, *[7] * 119]], max_new_tokens=500, mode="text")
    assert len(answer.ids) <= 8
    (full,) = small().generate([[1, *[7] * 126]], max_new_tokens=500, mode="text")
    assert len(full.ids) <= 1


def test_a_stop_string_ends_the_answer():
    free = small().generate(prompts(8), max_new_tokens=40, mode="text")
    texts = [answer.segments[0].text for answer in free]
    stop = next(t[i : i + 2] for t in texts for i in range(4, len(t) - 2) if t[i : i + 2].isalpha())
    answers = small().generate(prompts(8), max_new_tokens=40, mode="text", stop=(stop, "never seen"))
    assert any(stop in text for text in texts)
    for text, before, answer in zip(texts, free, answers, strict=True):
        found = "".join(segment.text for segment in answer.segments)
        assert found == text.split(stop)[0]
        assert answer.finish_reason == ("stop" if stop in text else before.finish_reason)


def test_a_stop_string_does_not_end_an_answer_before_its_image():
    free = small().generate(prompts(8), max_new_tokens=64, mode="image")
    place, text = next((i, a.segments[1].text) for i, a in enumerate(free) if re.search("[a-z]", a.segments[-1].text))
    stop = re.search("[a-z]", text)[0]
    answer = small().generate(prompts(8), max_new_tokens=64, mode="image", stop=(stop,))[place]
    assert answer.segments[0] == free[place].segments[0]
    assert "".join(segment.text for segment in answer.segments[1:]) == text.split(stop)[0]
    assert answer.finish_reason == "stop"


def test_a_stream_adds_up_to_the_answer():
    request = Request(prompts(3)[2], SamplingParams(64, temperature=1.0, seed=1, mode="some", stop=("zz",)))
    *pieces, answer = small().stream(request)
    assert [answer] == small().generate([request])
    assert len(pieces) > len(answer.segments)
    joined = []
    for piece in pieces:
        if joined and isinstance(piece, TextSegment) and isinstance(joined[-1], TextSegment):
            joined[-1] = TextSegment(joined[-1].text + piece.text)
        else:
            joined.append(piece)
    assert tuple(joined) == answer.segments


def test_an_interrupted_generation_returns_what_it_has(monkeypatch):
    handler = signal.getsignal(signal.SIGINT)
    settings = SamplingParams(64, mode="text", temperature=3.0)
    (whole,) = small().generate(prompts(1), settings)
    assert len(whole.ids) > CHUNK_TOKENS
    decode = small().programs.decode

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        return decode(*arguments)

    monkeypatch.setattr(small(), "programs", dataclasses.replace(small().programs, decode=interrupted))
    first, second = small().generate(prompts(2), settings, batch_size=1)
    assert (first.finish_reason, second.finish_reason) == ("interrupted", "interrupted")
    assert first.ids == whole.ids[:CHUNK_TOKENS]
    assert second.ids == ()
    assert signal.getsignal(signal.SIGINT) is handler


def test_bfloat16_runs():
    generator = Generator(SMALL, small_params(), vocabulary(), precision=Precision("bfloat16", "bfloat16"))
    (answer,) = generator.generate(prompts(1), max_new_tokens=34, mode="image")
    assert isinstance(answer.segments[0], ImageSegment)


@pytest.fixture(scope="module")
def requests():
    return [Request(prompt, one) for prompt, one in zip(prompts(7), MIXED, strict=True)] + [
        Request(prompts(1)[0], SamplingParams(40, stop=("a",), mode="text"))
    ]


@pytest.mark.slow
def test_a_mesh_generates_the_same_and_keeps_each_rows_cache_where_it_is(requests):
    mesh = sharding.make_mesh({"fsdp": 4}, jax.devices()[:4])
    generator = Generator(SMALL, small_params(), vocabulary(), mesh=mesh)
    decode, compiled = generator.programs.decode, []

    def recording(loop, *rest):
        compiled[:] = compiled or [decode.lower(loop, *rest).compile()]
        return compiled[0](*rest)

    generator.programs = dataclasses.replace(generator.programs, decode=recording)
    assert generator.generate(requests) == small().generate(requests)
    # Weights are gathered, two axes each; keys and values, or caches of them, would have four or five.
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather\(", compiled[0].as_text())
    assert gathered
    assert max(shape.count(",") + 1 for shape in gathered) <= 2


def test_a_mesh_that_cuts_heads_and_vocabulary_generates_the_same(requests):
    sizes = dataclasses.replace(SMALL, num_kv_heads=2)
    params = from_transformers(as_transformers(sizes, 7), sizes)
    mesh = sharding.make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])
    found = Generator(sizes, params, vocabulary(), mesh=mesh).generate(requests)
    assert found == Generator(sizes, params, vocabulary()).generate(requests)


def test_bad_requests():
    assert small().generate([]) == []
    boi = vocabulary().boi
    for arguments, message in [
        (([[1] * 128],), "Prompt 1 has 128 tokens, expected 1 to 127"),
        (([[1], []],), "Prompt 2 has 0 tokens"),
        (([[1, 366]],), "outside 0 to 365"),
        (([[1]], {"max_new_tokens": 0}), "max_new_tokens is 0"),
        (([[1]], {"max_new_tokens": 33, "mode": "image"}), "Prompt 1 leaves room for 33 new tokens .* need 34"),
        (([[1]], {"max_new_tokens": 80, "num_images": 3}), "room for 80 new tokens .* required images need 102"),
        (([[1, boi]], {"max_new_tokens": 20}), "leaves room for 20 new tokens .* need 33"),
        (([[1, *[7] * 100]], {"mode": "image"}), "leaves room for 27 new tokens"),
        (([[1]], {"temperature": -1.0}), "temperature is -1.0"),
        (([[1]], {"top_p": 0.0}), "top_p is 0.0"),
        (([[1]], {"top_k": -1}), "top_k is -1"),
        (([[1]], {"min_p": 2.0}), "min_p is 2.0"),
        (([[1]], {"seed": 2**32}), "seed is 4294967296"),
        (([[1]], {"mode": "both"}), "Unknown image mode 'both'"),
        (([[1]], {"mode": "text", "num_images": 1}), r"num_images is 1, which contradicts the image mode 'text'"),
        (([[1]], {"stop": ("",)}), "A stop string is empty"),
        (([Request([1], SamplingParams(guidance_scale=2.0), [])],), "Prompt 1's negative prompt has 0 tokens"),
    ]:
        with pytest.raises(UserError, match=message):
            small().generate(arguments[0], **dict(*arguments[1:]))


def test_settings_from_a_file():
    found = SamplingParams.from_dict({"temperature": 1, "stop": ["a"], "num_images": 2, "top_k": 3}, "line 1")
    assert found == SamplingParams(temperature=1.0, stop=("a",), num_images=2, top_k=3)
    assert SamplingParams.from_dict({"stop": "a"}, "line 1").stop == ("a",)
    with pytest.raises(
        UserError, match=r"line 1: seed is '3'; stop is 4; top_k is 1.5; unknown sampling parameter 'heat'; known"
    ):
        SamplingParams.from_dict({"heat": 1, "seed": "3", "top_k": 1.5, "stop": 4}, "line 1")
    with pytest.raises(UserError, match="line 2: temperature is -1"):
        SamplingParams.from_dict({"temperature": -1}, "line 2")


def test_model_and_vocabulary_must_fit():
    with pytest.raises(UserError, match="The vocabulary has 366 tokens but the language model 400"):
        Generator(LlamaConfig(400, 16, 24, 2, 2, 1), {}, vocabulary())
    with pytest.raises(UserError, match="missing lm_head/kernel"):
        Generator(SMALL, {k: v for k, v in small_params().items() if k != "lm_head"}, vocabulary())


def test_a_workdir_generates_with_its_adapters_merged(tmp_path):
    spec = LoraSpec(LORA_TARGETS, rank=2, alpha=64.0)
    adapters = jax.tree.map(lambda x: x + 0.1, lora.init(small_params(), spec, jax.random.key(0)))
    config = {
        "sizes": SMALL.to_dict(),
        "image_tokenizer": "../pictures",
        "lora": {"rank": 2, "alpha": 64.0, "dropout": 0.0},
    }
    vocabulary().save(tmp_path / "text")
    files = {file.name: file for file in (tmp_path / "text").iterdir()}
    model_dir.save(tmp_path / "run/model", "llama", config, None, files=files)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run/checkpoints/7/params", {"params": small_params(), "lora": adapters})
    merged = unstack_layers(lora.merge(small_params(), adapters, spec))
    found = Generator.load(tmp_path / "run")
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), found.params, merged))
    path = tmp_path / "run/model/config.json"
    kept = json.loads(path.read_text())
    del kept["lora"]
    path.write_text(json.dumps(kept))
    with pytest.raises(UserError, match="has no 'lora'"):
        Generator.load(tmp_path / "run")

"""Parallel decoding: the ids of sequential decoding in fewer passes, from any draft."""

import dataclasses
import json

import jax
import pytest

from seed_jax import sharding
from seed_jax.errors import UserError
from seed_jax.inference.generation.batching import Request
from seed_jax.inference.generation.generator import CHUNK_TOKENS, Generator
from seed_jax.inference.generation.parallel_decoding import first_draft
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.generation.scoring import Scorer
from seed_jax.inference.generation.segments import ImageSegment
from seed_jax.inference.language_model import read_draft_codes
from seed_jax.precision import Precision
from tests.inference.generation.cases import SMALL, images_of, prompts, small, small_params, vocabulary

IMAGE = vocabulary().image_ids([(7 * i) % 64 for i in range(32)])
# Texts, images and both, several images, an image begun by the prompt, one in the prompt, and no grammar.
PROMPTS = [*prompts(6), [1, 50, *IMAGE[:20]], [1, 9, *IMAGE, 40]]
PARAMS = [
    SamplingParams(40),
    SamplingParams(64, mode="image"),
    SamplingParams(90, temperature=1.0, seed=3, mode="some"),
    SamplingParams(80, temperature=0.8, top_k=20, seed=4, num_images=2),
    SamplingParams(70, temperature=1.3, top_p=0.8, seed=5, mode="some", stop=("a", "zz")),
    SamplingParams(90, temperature=1.0, seed=2**32 - 1, mode="none"),
    SamplingParams(36, temperature=0.5, min_p=0.1, seed=7),
    SamplingParams(60, temperature=1.0, seed=8, num_images=1),
]


def requests(parallel: bool, scale: float = 1.0) -> list[Request]:
    return [
        Request(prompt, dataclasses.replace(params, guidance_scale=scale, parallel_decoding=parallel))
        for prompt, params in zip(PROMPTS, PARAMS, strict=True)
    ]


def with_draft(codes: tuple[int, ...] | None) -> Generator:
    """Return `small()` with other draft codes; compiled programs are shared."""
    generator = object.__new__(Generator)
    generator.__dict__ = small().__dict__ | {"batcher": dataclasses.replace(small().batcher, draft_codes=codes)}
    return generator


def num_steps(generator: Generator, request: Request) -> int:
    *_, outputs = generator.run(generator.batcher.batch([request], ["a prompt"]), CHUNK_TOKENS)
    return int(outputs.num_steps)


@pytest.mark.parametrize("scale", [1.0, pytest.param(3.0, marks=pytest.mark.slow)])
def test_a_batch_of_all_kinds_has_the_ids_of_sequential_decoding(scale):
    expected = small().generate(requests(False, scale))
    assert sum(map(images_of, expected[1:5])) >= 5
    assert small().generate(requests(True, scale)) == expected
    # Neither the neighbours nor the draft change anything.
    assert with_draft(tuple(range(32))).generate(requests(True, scale)[::-1]) == expected[::-1]


def test_a_right_draft_needs_one_pass_for_a_whole_image():
    (request,) = [Request([1, 7], SamplingParams(34, mode="image", temperature=1.0, seed=1, parallel_decoding=True))]
    (answer,) = small().generate([request])
    (image,) = answer.segments
    assert isinstance(image, ImageSegment)
    assert num_steps(with_draft(image.codes), request) == 1
    # A wrong code costs one pass, however many follow it.
    wrong = (*image.codes[:10], (image.codes[10] + 1) % 64, *image.codes[11:])
    assert 2 <= num_steps(with_draft(wrong), request) <= 23
    assert num_steps(small(), request) <= 34


def test_an_edit_starts_from_the_image_of_its_prompt():
    words = vocabulary()
    first, last = words.image_ids(range(32)), words.image_ids(range(32, 64))
    assert first_draft([1, *first, 40, *last, 41, words.boi], words, [3] * 32) == last[1:-1]
    assert first_draft([1, 40, *last[:30]], words, [3] * 32) == [words.first_code + 3] * 32
    assert first_draft([1], words) == [words.first_code] * 32


def test_a_stream_yields_the_image_whole():
    request = Request([1, 7], SamplingParams(40, mode="image", parallel_decoding=True))
    *pieces, answer = small().stream(request)
    assert pieces[0] == answer.segments[0]
    assert isinstance(pieces[0], ImageSegment)


@pytest.mark.parametrize("parallel", [pytest.param(False, marks=pytest.mark.slow), True])
def test_bfloat16_decodes_several_tokens_at_a_time_on_a_cpu(parallel):
    generator = Generator(SMALL, small_params(), vocabulary(), precision=Precision("bfloat16", "bfloat16"))
    if parallel:
        params = SamplingParams(34, mode="image", parallel_decoding=True)
        assert [images_of(answer) for answer in generator.generate(prompts(4), params)] == [1] * 4
    else:
        (scores,) = Scorer(generator).score([[1, 7]], [[[5] * 20, [6] * 20]])
        (expected,) = Scorer(small()).score([[1, 7]], [[[5] * 20, [6] * 20]])
        # bfloat16 has 8 bits: products and activations are off by about 2 ** -8 each.
        assert scores[0].mean == pytest.approx(expected[0].mean, rel=0.05)


@pytest.mark.slow
def test_a_mesh_decodes_the_same():
    mesh = sharding.make_mesh({"fsdp": 2}, jax.devices()[:2])
    generator = Generator(SMALL, small_params(), vocabulary(), mesh=mesh)
    assert generator.generate(requests(True)) == small().generate(requests(True))


def test_bad_options(tmp_path):
    with pytest.raises(UserError, match="parallel_decoding is True, expected False with more than one beam"):
        SamplingParams(beams=2, parallel_decoding=True)
    for codes in ([1] * 31, [64] * 32, [True] * 32):
        with pytest.raises(UserError, match=r"draft_codes must be a list of 32 codes from 0 to 63.*draft-codes"):
            Generator(SMALL, small_params(), vocabulary(), draft_codes=codes)
    (tmp_path / "draft.json").write_text(json.dumps({"codes": []}))
    with pytest.raises(UserError, match='has no list "draft_codes"'):
        read_draft_codes(tmp_path, tmp_path / "draft.json")
    with pytest.raises(UserError, match="missing"):
        read_draft_codes(tmp_path, tmp_path / "missing.json")

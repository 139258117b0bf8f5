"""Generation: the recorded greedy ids, transformers, the grammar at work, independence of neighbours, buckets."""

import functools
import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
import transformers
from flax.core import meta

from seed_jax import sharding
from seed_jax.checkpoint import model_dir
from seed_jax.convert.llama_table import abstract_params, key_table
from seed_jax.convert.table import assemble
from seed_jax.convert.tensors import Tensor, Tensors, open_tensors
from seed_jax.data.vocab import Vocabulary, train_small
from seed_jax.errors import UserError
from seed_jax.inference.decoding import generate_ids
from seed_jax.inference.generate import Generator, bucket
from seed_jax.inference.grammar import Grammar
from seed_jax.inference.segments import ImageSegment, TextSegment
from seed_jax.models import lora
from seed_jax.models.llama import Llama, LlamaConfig
from seed_jax.models.lora import LoraSpec
from seed_jax.precision import Precision
from tests import golden

GOLDEN = LlamaConfig(366, 64, 172, 3, 4, 4, max_length=256)
SMALL = LlamaConfig(366, 16, 24, 2, 2, 1, max_length=128)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """Return a vocabulary with the sizes of the recorded model: 300 text tokens, 64 codes, <img> 364, </img> 365."""
    directory = tmp_path_factory.mktemp("vocabulary")
    train_small(["a cat on a mat in a hat", "a dog in the fog on a log"], directory, vocab_size=300, num_codes=64)
    found = Vocabulary.load(directory)
    assert (found.size, found.boi, found.eoi) == (366, 364, 365)
    return found


@functools.cache
def small_params():
    params = meta.unbox(jax.jit(Llama(SMALL).init)(jax.random.key(3), jnp.zeros((1, 2), jnp.int32)))["params"]
    params = jax.tree.map(lambda x: 30 * x if x.shape[-1] > 16 else x, params)
    params["lm_head"]["kernel"] = params["lm_head"]["kernel"].at[:, 364].multiply(3.0)  # likes to begin images
    return params


@pytest.fixture(scope="module")
def small(vocabulary):
    return Generator(SMALL, small_params(), vocabulary)


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [[1, *draw.integers(3, 300, draw.integers(1, 30)).tolist()] for _ in range(count)]


def test_greedy_ids_equal_the_original(vocabulary):
    tensors = open_tensors(golden.path("llama_tiny/weights.safetensors"))
    generator = Generator(GOLDEN, assemble(key_table(GOLDEN), tensors, abstract_params(GOLDEN)), vocabulary)
    recorded = golden.tensors("llama_tiny/generation.safetensors")
    (alone,) = generator.generate(recorded["prompt"].tolist(), max_new_tokens=24, mode="none")
    assert list(alone.ids) == recorded["sequence"][0, 38:].tolist()
    # Recorded with padding on the left; ours is on the right.
    batch = [
        row[mask == 1].tolist()
        for row, mask in zip(recorded["batch_input_ids"], recorded["batch_attention_mask"], strict=True)
    ]
    assert len({len(prompt) for prompt in batch}) == 2
    for answer, expected in zip(
        generator.generate(batch, max_new_tokens=24, mode="none"),
        recorded["batch_sequence"][:, 38:].tolist(),
        strict=True,
    ):
        assert list(answer.ids) == expected


def test_greedy_ids_equal_transformers_with_eos(vocabulary):
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 366}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128}
    config = transformers.LlamaConfig(**sizes, **heads, initializer_range=0.7, pad_token_id=0)
    reference = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        reference.lm_head.weight[2] *= 2  # so that some answers end early
    state = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    tensors = Tensors({name: Tensor(a.shape, a.dtype, lambda a=a: a) for name, a in state.items()}, "test")
    generator = Generator(SMALL, assemble(key_table(SMALL), tensors, abstract_params(SMALL)), vocabulary)
    answers = generator.generate(prompts(8), max_new_tokens=20, mode="none")
    for prompt, answer in zip(prompts(8), answers, strict=True):
        found = reference.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=2)
        expected = found[0, len(prompt) :].tolist()
        assert list(answer.ids) + ([2] if answer.stopped == "eos" else []) == expected
    assert {answer.stopped for answer in answers} == {"eos", "length"}


@pytest.mark.parametrize("mode", ["free", "image", "text"])
def test_every_image_is_whole(small, vocabulary, mode):
    answers = small.generate(prompts(64), max_new_tokens=80, mode=mode)
    images = 0
    for answer in answers:
        assert all(isinstance(segment, (TextSegment, ImageSegment)) for segment in answer.segments)
        found = [segment for segment in answer.segments if isinstance(segment, ImageSegment)]
        assert all(len(segment.codes) == 32 for segment in found)
        assert not {vocabulary.pad, vocabulary.bos, vocabulary.eos} & set(answer.ids)
        assert mode != "image" or isinstance(answer.segments[0], ImageSegment)
        images += len(found)
    assert (images > 0) == (mode != "text")


def test_without_the_grammar_the_same_model_makes_malformed_images(small):
    answers = small.generate(prompts(64), max_new_tokens=80, mode="none")
    kinds = {segment.to_dict()["type"] for answer in answers for segment in answer.segments}
    assert "malformed" in kinds


def test_an_answer_does_not_depend_on_its_neighbours(small):
    together = small.generate(prompts(5), max_new_tokens=40)
    for prompt, answer in zip(prompts(5), together, strict=True):
        assert small.generate([prompt], max_new_tokens=40) == [answer]


def test_an_image_begun_in_the_prompt_is_finished(small, vocabulary):
    prompt = [1, 50, vocabulary.boi, *[vocabulary.first_code] * 30]
    (answer,) = small.generate([prompt], max_new_tokens=5, mode="text")
    codes = [vocabulary.code_of(token) for token in answer.ids]
    assert all(code is not None for code in codes[:2])
    assert answer.ids[2] == vocabulary.eoi
    assert all(code is None for code in codes[2:])


def test_one_compilation_serves_a_bucket(vocabulary):
    generator = Generator(SMALL, small_params(), vocabulary)
    for count, tokens in [(3, 40), (4, 64), (3, 33)]:
        generator.generate(prompts(count, seed=count), max_new_tokens=tokens)
    assert generator._program._cache_size() == 1
    generator.generate(prompts(3), max_new_tokens=65)
    assert generator._program._cache_size() == 2
    assert [bucket(size, 100) for size in (1, 32, 33, 64, 65, 100)] == [32, 32, 64, 64, 100, 100]
    assert [bucket(size, smallest=1) for size in (1, 2, 3, 8, 9)] == [1, 2, 4, 8, 16]


def test_the_context_ends_an_answer(small):
    prompt = [1, *[7] * 119]
    (answer,) = small.generate([prompt], max_new_tokens=500, mode="text")
    assert len(answer.ids) <= 8
    (full,) = small.generate([[1, *[7] * 126]], max_new_tokens=500, mode="text")
    assert len(full.ids) <= 1


def test_bfloat16_runs(vocabulary):
    generator = Generator(SMALL, small_params(), vocabulary, precision=Precision("bfloat16", "bfloat16"))
    (answer,) = generator.generate(prompts(1), max_new_tokens=34, mode="image")
    assert isinstance(answer.segments[0], ImageSegment)


def test_a_mesh_generates_the_same_and_keeps_each_rows_cache_where_it_is(vocabulary):
    model, grammar = Llama(SMALL), Grammar.of(vocabulary)
    boxed = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    rows = prompts(4)
    tokens = jnp.array([row + [0] * (32 - len(row)) for row in rows], jnp.int32)
    inputs = tokens, jnp.array([len(row) for row in rows]), jnp.array([40, 40, 34, 3])
    run = jax.jit(functools.partial(generate_ids, model), static_argnums=(0, 1))
    expected = run(grammar, 64, small_params(), *inputs)
    mesh = sharding.make_mesh({"fsdp": 4}, jax.devices()[:4])
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
        params = jax.device_put(small_params(), sharding.tree_shardings(boxed, mesh))
        laid = [jax.device_put(x, sharding.batch_sharding(mesh)) for x in inputs]
        program = jax.jit(functools.partial(generate_ids, model), static_argnums=(0, 1)).lower(
            grammar, 64, params, *laid
        )
        compiled = program.compile()
        found = compiled(params, *laid)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.counts, expected.counts)
    # Weights are gathered, two axes each; keys and values, or caches of them, would have four or five.
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather\(", compiled.as_text())
    assert gathered
    assert max(shape.count(",") + 1 for shape in gathered) <= 2


def test_bad_requests(small, vocabulary):
    assert small.generate([]) == []
    for arguments, message in [
        (([[1] * 128],), "Prompt 1 has 128 tokens, expected 1 to 127"),
        (([[1], []],), "Prompt 2 has 0 tokens"),
        (([[1, 366]],), "outside 0 to 365"),
        (([[1]], 0), "max_new_tokens is 0"),
        (([[1]], 33, "image"), "Prompt 1 leaves room for 33 new tokens .* needs 34"),
        (([[1, vocabulary.boi]], 20), "leaves room for 20 new tokens .* needs 33"),
        (([[1, *[7] * 100]], 100, "image"), "leaves room for 27 new tokens"),
    ]:
        names = dict(zip(("max_new_tokens", "mode"), arguments[1:], strict=False))
        with pytest.raises(UserError, match=message):
            small.generate(arguments[0], **names)


def test_model_and_vocabulary_must_fit(vocabulary):
    with pytest.raises(UserError, match="The vocabulary has 366 tokens but the language model 400"):
        Generator(LlamaConfig(400, 16, 24, 2, 2, 1), {}, vocabulary)
    with pytest.raises(UserError, match="missing lm_head/kernel"):
        Generator(SMALL, {k: v for k, v in small_params().items() if k != "lm_head"}, vocabulary)


def test_a_workdir_generates_with_its_adapters_merged(vocabulary, tmp_path):
    spec = LoraSpec(rank=2, alpha=64.0)
    adapters = jax.tree.map(lambda x: x + 0.1, lora.init(small_params(), spec, jax.random.key(0)))
    config = {
        "sizes": SMALL.to_dict(),
        "image_tokenizer": "../pictures",
        "lora": {"rank": 2, "alpha": 64.0, "dropout": 0.0},
    }
    vocabulary.save(tmp_path / "text")
    files = {file.name: file for file in (tmp_path / "text").iterdir()}
    model_dir.save(tmp_path / "run/model", "llama", config, None, files=files)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run/checkpoints/7/params", {"params": small_params(), "lora": adapters})
    expected = Generator(SMALL, lora.merge(small_params(), adapters, spec), vocabulary).generate(
        prompts(2), max_new_tokens=40
    )
    found = Generator.load(tmp_path / "run")
    assert found.generate(prompts(2), max_new_tokens=40) == expected
    path = tmp_path / "run/model/config.json"
    kept = json.loads(path.read_text())
    del kept["lora"]
    path.write_text(json.dumps(kept))
    with pytest.raises(UserError, match="does not say how the checkpoint's adapters are scaled"):
        Generator.load(tmp_path / "run")

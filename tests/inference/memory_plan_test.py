"""Plans are what is loaded, bound what the compiler reckons with, and refuse what cannot fit."""

import dataclasses

import jax
import pytest

from seed_jax.errors import UserError
from seed_jax.inference import memory_plan
from seed_jax.inference.generation.batching import Request
from seed_jax.inference.generation.generator import Generator
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.image_tokenizer import ImageTokenizer
from seed_jax.inference.memory_plan import GIB, MemoryPlan, SlotPoolSize, Workload, plan_memory, tree_bytes
from seed_jax.models.diffusion import UnclipConfig
from seed_jax.models.llama.model import LlamaConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig, abstract_params
from seed_jax.precision import Precision
from seed_jax.serving.engine.slot_pool import SlotPool
from tests.inference.generation.cases import SMALL, prompts, small_params, vocabulary
from tests.models.tokenizer.cases import random_like


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_planned_weights_are_those_that_are_loaded(quantize):
    generator = Generator(SMALL, small_params(), vocabulary(), quantize=quantize)
    planned = plan_memory(SMALL, Precision(), Workload(), quantize=quantize)
    assert planned.resident["language model"] == tree_bytes(generator.params)
    sizes = SeedTokenizerConfig.tiny()
    tokenizer = ImageTokenizer(sizes, random_like(abstract_params(sizes)), quantize=quantize)
    assert tree_bytes(memory_plan.tokenizer_weights(sizes, quantize)) == tree_bytes(tokenizer.params)


@pytest.mark.optimized
@pytest.mark.parametrize("beams", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_programs_need_no_more_than_was_planned(beams):
    generator, compiled = Generator(SMALL, small_params(), vocabulary()), {}

    def recording(name: str, static: tuple[int, ...]):
        program = getattr(generator.programs, name)

        def call(*arguments):
            compiled[name] = program.lower(*arguments).compile()
            return compiled[name](*(a for index, a in enumerate(arguments) if index not in static))

        return call

    generator.programs = dataclasses.replace(
        generator.programs, prefill=recording("prefill", (0, 4)), decode=recording("decode", (0,))
    )
    requests = [Request(prompt, SamplingParams(32, beams=beams)) for prompt in prompts(2)]
    next(generator.run(generator.batcher.batch(requests, ["first", "second"]), 32))
    work = Workload(prompts=2, beams=beams, prompt_length=max(map(len, prompts(2))), new_tokens=32)
    planned = plan_memory(SMALL, Precision(), work)
    prefill, decode = (compiled[name].memory_analysis() for name in ("prefill", "decode"))
    assert prefill.temp_size_in_bytes <= planned.temporary["prefill"]
    assert decode.temp_size_in_bytes <= planned.temporary["decode"]
    held = decode.alias_size_in_bytes  # the state: keys, values and a little more
    assert planned.resident["KV cache"] <= held <= 1.05 * planned.resident["KV cache"] + 2**14


def test_a_batch_is_covered_by_its_most_expensive_requests():
    plain, parallel = SamplingParams(max_new_tokens=500), SamplingParams(parallel_decoding=True, max_new_tokens=70)
    guided = SamplingParams(guidance_scale=3.0, temperature=1.0, max_new_tokens=70)
    assert Workload.covering([plain, parallel, guided], 3) == Workload(3, 1, True, new_tokens=500, parallel=True)
    assert Workload.covering([guided, SamplingParams(beams=5)]) == Workload(1, 5, False, new_tokens=512)


@pytest.mark.optimized
def test_the_slots_of_a_server_need_no_more_than_was_planned():
    generator = Generator(SMALL, small_params(), vocabulary())
    size = SlotPoolSize(slots=8, length=128, prefill_chunk=32, prefix_cache_blocks=5)
    planned = plan_memory(SMALL, Precision(), size)
    pool = SlotPool(generator, size, max_chunk=4, decode_lengths=(64, 128))
    programs = pool.lower()
    for name, plan in (("prefill", "prefill of a chunk"), ("decode", "decode")):
        compiled = programs[name].compile().memory_analysis()
        assert compiled.temp_size_in_bytes <= planned.temporary[plan]
        held = planned.resident["KV-cache pool"] + planned.resident["prefix cache"] * (name == "prefill")
        assert held <= compiled.alias_size_in_bytes <= 1.05 * held + 2**14  # changed in place
    # 8 slots of 128 positions with a key and a value of 8 numbers in 2 layers, and six blocks of 32 positions.
    assert planned.resident["KV-cache pool"] == 8 * 128 * 2 * 2 * 8 * 4
    assert planned.resident["prefix cache"] == 6 * 32 * 2 * 2 * 8 * 4


@pytest.mark.slow
def test_the_released_sizes_fit_into_16_gib_in_8_bits_only():
    sizes = {"tokenizer": SeedTokenizerConfig.full(), "decoder": UnclipConfig.full()}
    work, half = Workload(prompt_length=1536), Precision("bfloat16", "bfloat16")
    quantized = plan_memory(LlamaConfig.seed_8b(), half, work, quantize="int8", quantize_vit="int8", **sizes)
    quantized.check(16 * GIB)
    # 6.48 G kernels of blocks and 0.17 G of the head in a byte each, as many embeddings in two bytes, and scales.
    assert quantized.resident["language model"] == pytest.approx(6.64e9 + 2 * 0.165e9, rel=0.005)
    assert quantized.resident["KV cache"] == 2048 * 2 * 32 * 4096 * 2
    several = plan_memory(LlamaConfig.seed_8b(), half, work, quantize="int8", quantize_vit="int8", num_drawn=8, **sizes)
    assert several.temporary["drawing"] > quantized.temporary["drawing"]
    assert quantized.resident["decoder"] == pytest.approx(2 * (870e6 + 340e6) + 4 * 84e6, rel=0.01)
    with pytest.raises(
        UserError, match=r"needs 2\d\.\d\d GiB of memory, but 16.00 GiB are available \(language model 12.68"
    ):
        dataclasses.replace(
            quantized, resident=quantized.resident | plan_memory(LlamaConfig.seed_8b(), half, work).resident
        ).check(16 * GIB)


def test_lines_limits_and_sizes():
    found = MemoryPlan({"a": GIB, "b": 2 * GIB}, {"reading": GIB, "drawing": 3 * GIB})
    assert found.peak == 6 * GIB
    assert [line.split()[-2] for line in found.lines()] == ["1.00", "2.00", "1.00", "3.00", "6.00"]
    found.check(6 * GIB)
    found.check(None)
    assert Workload(prompts=3, beams=2, guided=True).num_sequences == 16
    assert jax.default_backend() != "cpu" or memory_plan.device_memory() > GIB

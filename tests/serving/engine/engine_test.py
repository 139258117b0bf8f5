"""Answers equal those of `Generator.generate` in any company; slots, queue, prefix cache, cancelling, failures."""

import asyncio
import dataclasses
import threading
import time

import jax
import numpy as np
import pytest

from seed_jax import sharding
from seed_jax.errors import UserError
from seed_jax.inference.generation.batching import Request
from seed_jax.inference.generation.generator import Generator
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.generation.scoring import Scorer
from seed_jax.serving.engine import (
    Engine,
    EngineClosedError,
    EngineConfig,
    EngineDeadError,
    EngineRequest,
    FinishedEvent,
    QueueFullError,
    SlowReaderError,
    TokenEvent,
)
from tests.inference.generation.cases import SMALL, as_transformers, from_transformers, prompts, small, vocabulary
from tests.inference.generation.cases import small_params as params_of_small

# Eight slots and chunks of 2 to 4 steps: programs for two and for eight slots take turns while requests come and go.
CONFIG = EngineConfig(
    num_slots=8, decode_chunk=2, max_chunk_s=60.0, prefill_chunk=8, decode_lengths=(48,), max_queued_requests=64
)
# Everything that may differ between requests.
MIXED = [
    SamplingParams(33),
    SamplingParams(5, temperature=1.0, seed=3),
    SamplingParams(40, temperature=0.8, top_k=20, seed=4, mode="image"),
    SamplingParams(60, temperature=1.3, top_p=0.8, seed=5, mode="some"),
    SamplingParams(36, temperature=0.5, min_p=0.1, seed=2**32 - 1, num_images=1),
    SamplingParams(1, temperature=1.0, seed=3, mode="text"),
    SamplingParams(64, temperature=1.0, seed=7, mode="none"),
    SamplingParams(40, temperature=1.0, seed=3, mode="text", stop=("never seen", "onۼ", "dog?")),
    SamplingParams(60, temperature=1.0, seed=8, mode="image", stop=("at\x14o",)),
    SamplingParams(24, temperature=1.0, seed=3, guidance_scale=2.0),
    SamplingParams(24, guidance_scale=0.0),
    SamplingParams(500, temperature=2.0, seed=1, mode="text"),
]
LONG = SamplingParams(100, temperature=3.0, seed=1, mode="none", stop=("never seen",))


@pytest.fixture(scope="module")
def engine():
    engine = Engine(small(), CONFIG)
    engine.start()
    yield engine
    engine.shutdown()


def submit(engine: Engine, name: object, prompt: list[int], params: SamplingParams, **options):
    return engine.submit(EngineRequest(str(name), tuple(prompt), params, **options))


def wait_until(condition, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_answers_equal_those_of_the_generator_alone_and_in_company(engine):
    batch = list(zip(prompts(len(MIXED)), MIXED, strict=True))
    expected = small().generate([Request(prompt, params) for prompt, params in batch])
    assert {answer.finish_reason for answer in expected} == {"eos", "length", "stop"}
    programs = engine.stats().num_programs
    # Three times as many requests as slots, arriving while others run, in two orders.
    for round_number, order in enumerate([range(len(MIXED)), range(len(MIXED))[::-1]]):
        streams = {}
        for index in order:
            streams[index] = submit(engine, (round_number, index), *batch[index])
            time.sleep(0.003)
        for index, stream in streams.items():
            assert stream.result().generation == expected[index]
    for index in (3, 9):
        events = list(submit(engine, index, *batch[index]))
        assert events[-1].generation == expected[index]
        assert sum((event.token_ids for event in events[:-1]), ()) == expected[index].ids
        assert events[-1].usage.completion_tokens == len(expected[index].ids)
    stats = engine.stats()
    assert stats.num_programs == programs
    assert (stats.running, stats.waiting, stats.slots_in_use) == (0, 0, 0)


def test_a_prefix_is_computed_once_and_changes_nothing(engine):
    prompt = [1, *np.random.default_rng(5).integers(3, 300, 40).tolist()]
    params = SamplingParams(36, temperature=1.0, seed=9, mode="image")
    before = engine.stats()
    miss = list(submit(engine, "miss", prompt, params))
    hit = list(submit(engine, "hit", prompt, params))
    # 40 tokens before the last one are five blocks of 8.
    assert (miss[-1].usage.cached_tokens, hit[-1].usage.cached_tokens) == (0, 40)
    # Not only the tokens: equal chunks make the cached keys and values equal in every bit.
    assert hit[:-1] == miss[:-1]
    assert len(hit) > 8
    assert hit[-1].generation == miss[-1].generation == small().generate([prompt], params)[0]
    # A conversation that goes on, one that branches off, and another tenant.
    longest = [*prompt, *hit[-1].generation.ids, 5]
    longer = submit(engine, "longer", longest, params).result()
    assert longer.usage.cached_tokens == 40
    assert submit(engine, "branch", [*prompt[:20], 9, 9, 9, 9, 9], params).result().usage.cached_tokens == 16
    assert submit(engine, "tenant", prompt, params, cache_salt="other").result().usage.cached_tokens == 0
    after = engine.stats()
    assert after.prefix_cache_hits - before.prefix_cache_hits == 96
    assert after.prefix_cache_queries - before.prefix_cache_queries == 40 + 40 + len(longest) - 1 + 24 + 40


def test_requests_that_arrive_together_share_their_prefix(engine):
    prompt = [1, *np.random.default_rng(6).integers(3, 300, 32).tolist()]
    streams = [submit(engine, ("together", i), [*prompt, 4 + i, 3], SamplingParams(4)) for i in range(3)]
    assert sorted(stream.result().usage.cached_tokens for stream in streams) == [0, 32, 32]


def test_log_probabilities_are_those_of_the_model(engine):
    prompt = prompts(3)[2]
    events = list(submit(engine, "logprobs", prompt, SamplingParams(12, temperature=1.0, seed=2, mode="none")))
    ids = events[-1].generation.ids
    found = np.concatenate([event.logprobs for event in events[:-1]])
    ((score,),) = Scorer(small()).score([prompt], [[ids]])
    np.testing.assert_allclose(found, score.log_probs, atol=1e-4)  # sums of 366 exponentials in float32


def test_cancelling_frees_the_slot_and_keeps_what_was_generated(engine):
    (whole,) = small().generate(prompts(1), LONG)
    streams = [submit(engine, ("cancel", i), prompts(1)[0], LONG) for i in range(CONFIG.num_slots)]
    last = submit(engine, "last", prompts(1)[0], SamplingParams(3))
    first = next(streams[0])
    streams[0].cancel()
    streams[0].cancel()
    assert isinstance(first, TokenEvent)
    finished = last.result()  # it got the slot while the others go on
    assert engine.stats().running == CONFIG.num_slots - 1
    end = streams[0].result()
    assert end.generation.finish_reason == "interrupted"
    assert end.generation.ids == whole.ids[: len(end.generation.ids)]
    assert len(end.generation.ids) < len(whole.ids)
    assert finished.timings.total_s > 0
    for stream in streams[1:]:
        assert stream.result().generation == whole
    engine.cancel("never submitted")


def test_an_event_loop_reads_many_streams(engine):
    batch = [(prompt, SamplingParams(8, temperature=1.0, seed=i)) for i, prompt in enumerate(prompts(12, seed=4))]
    expected = small().generate([Request(prompt, params) for prompt, params in batch])

    async def answer(index: int):
        async with submit(engine, ("async", index), *batch[index]) as stream:
            return (await stream.aresult()).generation

    async def answer_all():
        return await asyncio.gather(*(answer(index) for index in range(len(batch))))

    assert asyncio.run(answer_all()) == expected


def test_requests_that_cannot_be_answered_are_refused(engine):
    for prompt, params, message in [
        ([], SamplingParams(), "0 tokens"),
        ([1] * 128, SamplingParams(), "128 tokens, expected 1 to 127"),
        ([1, 366], SamplingParams(), "outside 0 to 365"),
        ([1], SamplingParams(33, mode="image"), "need 34"),
        ([1], SamplingParams(beams=9), "beams is 9, .* at most 4"),
        ([1], SamplingParams(parallel_decoding=True), "parallel_decoding is not supported by the server"),
    ]:
        with pytest.raises(UserError, match=message):
            submit(engine, "bad", prompt, params)
    stream = submit(engine, "twice", [1], LONG)
    with pytest.raises(UserError, match="'twice' is running already"):
        submit(engine, "twice", [1], LONG)
    stream.cancel()
    stream.result()
    assert engine.stats().running == 0


@pytest.fixture
def tiny_engine():
    """An engine of two slots for tests that stop or break it."""
    engine = Engine(
        Generator(SMALL, params_of_small(), vocabulary()),
        dataclasses.replace(
            CONFIG, num_slots=2, max_queued_requests=1, max_buffered_events=8, max_beams=1, max_model_len=64
        ),
    )
    with pytest.raises(EngineClosedError):
        submit(engine, "early", [1], SamplingParams())
    engine.start()
    yield engine
    engine.shutdown()


def test_limits_and_shutdown(tiny_engine):
    engine = tiny_engine
    # The context is the configured one.
    assert len(submit(engine, "context", [1, *[7] * 50], LONG).result().generation.ids) == 13
    # Two requests may run and one wait; they are submitted faster than they are answered.
    streams = []
    with pytest.raises(QueueFullError) as refused:
        streams.extend(submit(engine, number, [1], LONG) for number in range(1000))
    assert refused.value.retry_after_s >= 1
    assert len(streams) >= 3
    for stream in streams:
        stream.cancel()
    wait_until(lambda: engine.stats().running + engine.stats().waiting == 0)
    interrupted = engine.stats().finished.get("interrupted", 0)
    # Nobody reads the stream: the request is cancelled, and the engine goes on.
    stream = submit(engine, "slow", [1], SamplingParams(60, mode="image"))  # an image alone is nine events
    wait_until(lambda: engine.stats().finished.get("interrupted", 0) == interrupted + 1)
    with pytest.raises(SlowReaderError):
        list(stream)
    assert len(submit(engine, "after it", [1], SamplingParams(4)).result().generation.ids) == 4
    # Shutdown lets what runs finish and refuses the rest.
    last = submit(engine, "last", [1, 7], SamplingParams(12))
    closing = threading.Thread(target=engine.shutdown, args=(20.0,))
    closing.start()
    assert last.result().generation == small().generate([[1, 7]], max_new_tokens=12)[0]
    closing.join()
    with pytest.raises(EngineClosedError):
        submit(engine, "late", [1], SamplingParams())


def test_a_failure_reaches_every_reader_and_the_next_request(tiny_engine):
    stream = submit(tiny_engine, "running", [1], dataclasses.replace(LONG, max_new_tokens=12))
    tiny_engine.generator.params = None
    with pytest.raises(EngineDeadError, match="failed"):
        list(stream)
    with pytest.raises(EngineDeadError):
        submit(tiny_engine, "next", [1], SamplingParams())
    stats = tiny_engine.stats()
    assert not stats.healthy
    assert stats.running == 0


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="max_model_len is 200, but the model's context is 128"):
        Engine(small(), EngineConfig(max_model_len=200))
    with pytest.raises(UserError, match=r"needs .* but 4.00 MiB .*KV-cache pool 8.00 MiB.* fewer slots"):
        Engine(small(), EngineConfig(num_slots=512), memory_limit=2**22)
    with pytest.raises(UserError, match="decode_chunk is 0, expected at least 1"):
        EngineConfig(decode_chunk=0)


@pytest.mark.slow
def test_beam_searches_run_beside_the_slots(engine):
    params = [SamplingParams(8, beams=2), SamplingParams(100, beams=4, mode="none"), SamplingParams(8, beams=2)]
    streams = [submit(engine, ("beams", i), [1, 5, 6], one) for i, one in enumerate(params)]
    streams[1].cancel()
    text = submit(engine, "text", [1, 7], SamplingParams(12)).result()
    assert text.generation == small().generate([[1, 7]], max_new_tokens=12)[0]
    found = [stream.result().generation for stream in streams]
    (expected,) = small().generate([[1, 5, 6]], params[0])
    assert found[0] == found[2] == expected
    assert found[1].finish_reason == "interrupted"
    assert engine.stats().running == 0


@pytest.mark.slow
@pytest.mark.parametrize("shape", [{"tensor": 2}, {"fsdp": 2, "tensor": 2}])
def test_a_mesh_answers_the_same(shape):
    sizes = dataclasses.replace(SMALL, num_kv_heads=2)
    params = from_transformers(as_transformers(sizes, 7), sizes)
    count = int(np.prod(list(shape.values())))
    mesh = sharding.make_mesh(shape, jax.devices()[:count])
    batch = list(zip(prompts(len(MIXED)), MIXED, strict=True))
    batch.append(([1, 5, 6], SamplingParams(8, beams=2)))
    expected = Generator(sizes, params, vocabulary()).generate([Request(*one) for one in batch])
    engine = Engine(Generator(sizes, params, vocabulary(), mesh=mesh), CONFIG)
    engine.start()
    programs = engine.stats().num_programs
    streams = [submit(engine, index, *one) for index, one in enumerate(batch)]
    answers = [stream.result().generation for stream in streams]
    # All but the last digits of a beam's score, which the mesh's own sums round.
    assert [dataclasses.replace(one, score=None) for one in answers] == [
        dataclasses.replace(one, score=None) for one in expected
    ]
    assert engine.stats().num_programs == programs
    engine.shutdown()


@pytest.mark.slow
def test_a_thousand_requests_from_many_threads_are_answered_as_alone(engine):
    draw = np.random.default_rng(11)
    batch = []
    for index, prompt in enumerate(prompts(1000, seed=12)):
        kind = MIXED[draw.integers(len(MIXED))]
        budget = max(int(draw.integers(1, 50)), 40 if kind.image_constraint.min_images else 1)
        batch.append((prompt, dataclasses.replace(kind, seed=index, max_new_tokens=budget)))
    expected = small().generate([Request(*one) for one in batch], batch_size=64)
    answers, programs = {}, engine.stats().num_programs

    def client(number: int) -> None:
        for index in range(number, len(batch), 16):
            end = submit(engine, ("load", index), *batch[index]).result()
            assert isinstance(end, FinishedEvent)
            answers[index] = end.generation

    threads = [threading.Thread(target=client, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == len(batch)
    assert [answers[index] for index in range(len(batch))] == expected
    assert engine.stats().num_programs == programs

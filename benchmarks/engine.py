"""Throughput and latency of the serving engine in one process, against one-by-one `Generator.generate`.

Clients in a closed loop: each sends its next request when it has the answer to the last one. Both servers run the same
requests on the same random model, one after the other; every answer of the engine is compared with the one that
`Generator.generate` gives. On a machine that others use too, compare processor time (`cpu_ms_per_token`, on a CPU)
rather than the speed by the clock.

    python benchmarks/engine.py --clients 1 8 32 --requests 96
    python benchmarks/engine.py --hidden 512 --layers 8 --requests 32
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import numpy as np

from seed_jax.data.text.vocabulary import Vocabulary, train_small
from seed_jax.inference.generation.batching import bucket
from seed_jax.inference.generation.generator import Generator
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.generation.segments import Generation, ImageSegment
from seed_jax.models.llama.model import Llama, LlamaConfig
from seed_jax.serving.engine import Engine, EngineConfig, EngineRequest
from seed_jax.sharding import unbox


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a client saw of one request; times in seconds since it was sent."""

    generation: Generation
    first_token_s: float | None
    total_s: float
    gaps_s: tuple[float, ...] = ()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=96, help="requests of each run")
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--decode-chunk", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=64, help="hidden size of the random model")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()

    generator = random_generator(args.hidden, args.layers)
    requests = random_requests(generator.vocabulary, args.requests, args.max_tokens)
    config = EngineConfig(num_slots=args.slots, decode_chunk=args.decode_chunk)
    engine = Engine(generator, config)
    start = time.monotonic()
    engine.start()
    print(f"{jax.devices()[0].device_kind}, {engine.memory_plan.peak / 2**20:.0f} MiB planned, "
          f"compiled in {time.monotonic() - start:.1f} s", file=sys.stderr)  # fmt: skip
    for request in {bucket(len(request.prompt)): request for request in requests}.values():  # compile beforehand
        generator.generate([request.prompt], request.sampling_params)
    answer_engine(engine, requests[0])

    rows = []
    expected, row = one_by_one(generator, requests)
    rows.append(row)
    programs = engine.stats().num_programs
    for clients in args.clients:
        cpu = time.process_time()
        answers, seconds = closed_loop(engine, requests, clients)
        cpu = time.process_time() - cpu
        wrong = sum(answers[index].generation != expected[index] for index in range(len(requests)))
        rows.append({"server": "engine", "clients": clients, "wrong": wrong, **figures(answers, seconds, cpu)})
        rows[-1]["speedup"] = rows[-1]["tokens_per_s"] / rows[0]["tokens_per_s"]
        rows[-1]["cpu_speedup"] = rows[0]["cpu_ms_per_token"] / rows[-1]["cpu_ms_per_token"]
    assert engine.stats().num_programs == programs
    engine.shutdown()
    for row in rows:
        values = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()}
        print("  ".join(f"{name} {value}" for name, value in values.items()))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


def random_generator(hidden: int, layers: int) -> Generator:
    """Return a random model with 64 codes and a context of 256 tokens."""
    with tempfile.TemporaryDirectory() as directory:
        train_small(["a cat on a mat", "a dog in the fog on a log"], Path(directory), vocab_size=300, num_codes=64)
        vocabulary = Vocabulary.load(directory)
    heads = max(1, hidden // 64)
    sizes = LlamaConfig(vocabulary.size, hidden, 3 * hidden, layers, heads, heads, max_length=256)
    params = unbox(Llama(sizes).init(jax.random.key(0), np.zeros((1, 2), np.int32)))["params"]
    # Sharper than at initialization, so that no two scores are equal up to rounding.
    return Generator(sizes, jax.tree.map(lambda leaf: leaf * (6.0 if leaf.ndim > 1 else 1.0), params), vocabulary)


def random_requests(vocabulary: Vocabulary, count: int, max_tokens: int) -> list[EngineRequest]:
    """Return text and image requests, half of them with a common beginning of 64 tokens, with a seed each."""
    draw = np.random.default_rng(0)
    common = draw.integers(3, 300, 63).tolist()
    requests = []
    for index in range(count):
        own = draw.integers(3, 300, draw.integers(4, 60)).tolist()
        prompt = (vocabulary.bos, *(common if index % 2 else ()), *own)
        mode = "image" if index % 3 == 0 else "text"
        params = SamplingParams(max_tokens, temperature=1.0, seed=index, mode=mode)
        requests.append(EngineRequest(str(index), prompt, params))
    return requests


def one_by_one(generator: Generator, requests: list[EngineRequest]) -> tuple[list[Generation], dict]:
    """Answer requests one after the other, as a server without batching does."""
    start, cpu = time.monotonic(), time.process_time()
    answers = []
    for request in requests:
        begun = time.monotonic()
        (generation,) = generator.generate([request.prompt], request.sampling_params)
        answers.append(Answer(generation, None, time.monotonic() - begun))
    seconds, cpu = time.monotonic() - start, time.process_time() - cpu
    row = {"server": "one by one", "clients": 1, **figures(answers, seconds, cpu)}
    return [answer.generation for answer in answers], row


def closed_loop(engine: Engine, requests: list[EngineRequest], clients: int) -> tuple[list[Answer], float]:
    """Answer requests with some clients, and return the answers in order with the seconds of it all."""
    answers: dict[int, Answer] = {}
    lock, following = threading.Lock(), iter(range(len(requests)))

    def client() -> None:
        while True:
            with lock:
                index = next(following, None)
            if index is None:
                return
            answers[index] = answer_engine(engine, requests[index])

    threads = [threading.Thread(target=client) for _ in range(clients)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answers[index] for index in range(len(requests))], time.monotonic() - start


def answer_engine(engine: Engine, request: EngineRequest) -> Answer:
    start = time.monotonic()
    events, times = [], []
    for event in engine.submit(request):
        events.append(event)
        times.append(time.monotonic())
    gaps = np.diff(times[:-1]).tolist()
    return Answer(events[-1].generation, times[0] - start, times[-1] - start, tuple(gaps))


def figures(answers: list[Answer], seconds: float, cpu_seconds: float) -> dict:
    """Return the throughput, and latencies in milliseconds."""
    tokens = sum(len(answer.generation.ids) for answer in answers)
    images = sum(isinstance(segment, ImageSegment) for answer in answers for segment in answer.generation.segments)
    row = {
        "requests": len(answers),
        "tokens": tokens,
        "images": images,
        "requests_per_s": len(answers) / seconds,
        "tokens_per_s": tokens / seconds,
        "cpu_ms_per_token": 1000 * cpu_seconds / tokens,
    }
    first = [answer.first_token_s for answer in answers if answer.first_token_s is not None]
    gaps = [gap for answer in answers for gap in answer.gaps_s]
    for name, values in {"first_token": first, "gap": gaps, "total": [answer.total_s for answer in answers]}.items():
        if values:
            row |= {f"{name}_ms_p{q}": 1000 * float(np.percentile(values, q)) for q in (50, 99)}
    return row


if __name__ == "__main__":
    main()

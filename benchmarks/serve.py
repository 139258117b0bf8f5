"""Measure a server over HTTP: closed loops and a Poisson rate, beside one-by-one serving and transformers' `generate`.

    python benchmarks/serve.py --size tiny --clients 1 8 32 --requests 200          # some minutes
    python benchmarks/serve.py --size 0.28b --clients 1 8 32 128 --requests 256     # an hour on two cores
    python benchmarks/serve.py --size tiny --clients 32 --requests 10000 --check    # every answer against its seed
    python benchmarks/serve.py --url http://127.0.0.1:8000 --rate 2 --requests 100  # a server that runs already
    python benchmarks/serve.py --rehearse                                           # to see that it runs

Servers and clients are processes of their own on this machine. Of the requests, --images ask for an image (34 tokens,
drawn with --draw-steps), the others for --max-tokens tokens of text; all are streamed.

TTFT  from sending to the first event with `choices`; ITL between two events, of up to 4 tokens; TPOT per token after
the first; time to image from sending to the drawn image. Warm-up requests are not counted.
--check compares text and codes with `Generator.generate` for the same seed, and counts the images, which are decoded.
An answer is lost if its request failed or its stream ended early; it is empty if the model's first token ends it.
"""

import argparse
import asyncio
import base64
import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SIZES = {  # vocabulary, hidden, intermediate, layers, heads, context
    "tiny": (830, 32, 48, 2, 2, 256),
    "0.28b": (40194, 1024, 2752, 16, 16, 512),
}
SUBJECTS = ("a cat", "a dog", "the fog", "a hat", "a log", "a mat")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny", help="of a model with random weights")
    parser.add_argument("--model", type=Path, help="a bundle instead")
    parser.add_argument("--url", help="a running server instead")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32], help="closed loops of so many clients")
    parser.add_argument("--rate", type=float, nargs="+", default=[], help="Poisson arrivals per second")
    parser.add_argument("--requests", type=int, default=200, help="per row")
    parser.add_argument("--baseline-requests", type=int, help="per row of the baselines (default: as many)")
    parser.add_argument("--images", type=float, default=0.25, help="share of requests that draw")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--draw-steps", type=int, default=4)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--minutes", type=float, default=0, help="repeat the last row so long, and report the memory")
    parser.add_argument("--without-baselines", action="store_true")
    parser.add_argument("--skip-transformers", action="store_true", help="only one-by-one serving as the baseline")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--transformers", type=int, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument("--client", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        print(json.dumps(asyncio.run(load(**args.client))))
        return
    if args.transformers:
        serve_transformers(args.transformers, SIZES[args.size])
        return
    if args.rehearse:
        args.clients, args.rate, args.requests, args.max_tokens, args.slots = [2], [20.0], 6, 16, 4
        args.check = True
    with tempfile.TemporaryDirectory() as folder:
        run(args, Path(folder))


def run(args: argparse.Namespace, folder: Path) -> None:
    print("| server | load | requests/s | tokens/s | images/s | TTFT p50 / p99, ms | ITL p50 / p99, ms | TPOT p50, ms "
          "| image p50, s | CPU ms/token | lost | wrong |")  # fmt: skip
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    if args.url:
        rows(args, "given", args.url, None, None)
        return
    model = args.model or write_bundle(folder, SIZES[args.size])
    expected = expected_answers(args, model) if args.check else None
    with Server([*SERVE, "--model", str(model), "--slots", str(args.slots)], folder / "log") as server:
        rows(args, f"{args.slots} slots", server.url, server, expected)
        if args.minutes:
            soak(args, server, expected)
    if args.without_baselines:
        return
    args = argparse.Namespace(**{**vars(args), "requests": args.baseline_requests or args.requests})
    alone = ["--slots", "1", "--draw-batch", "1", "--encode-batch", "1", "--max-beams", "1"]
    with Server([*SERVE, "--model", str(model), *alone], folder / "log") as server:
        rows(args, "one by one", server.url, server, expected)
    if args.skip_transformers:
        return
    with Server([__file__, "--size", args.size, "--transformers", "0"], folder / "log", zero_port=True) as server:
        rows(argparse.Namespace(**{**vars(args), "images": 0.0}), "transformers, text only", server.url, server, None)


SERVE = ["-m", "seed_jax.cli", "serve", "--port", "0", "--name", "benchmark", "--max-queue", "4096"]


class Server:
    """A server process, ready for requests."""

    def __init__(self, command: list[str], log: Path, *, zero_port: bool = False):
        if zero_port:
            command = [*command[:-1], str(free_port())]
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, *command], stdout=log.open("wb"), stderr=subprocess.STDOUT, env={**os.environ}
        )

    def __enter__(self) -> "Server":
        while not (
            found := re.search(r"(?:Serving|running) on (http://[\w.:]+)", self.log.read_text(errors="replace"))
        ):
            if self.process.poll() is not None:
                raise SystemExit(self.log.read_text(errors="replace"))
            time.sleep(0.1)
        self.url = found[1]
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def cpu_seconds(self) -> float:
        """Return the processor time of all its threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def requests_of(args: argparse.Namespace, count: int) -> list[dict]:
    """Return the bodies: request i has the seed i."""
    kinds = np.random.default_rng(0).random(count) < args.images
    bodies = []
    for seed, draws in enumerate(kinds.tolist()):
        prompt = f"{SUBJECTS[seed % len(SUBJECTS)]} on {SUBJECTS[seed // 7 % len(SUBJECTS)]}"
        body = {"messages": [{"role": "user", "content": prompt}], "seed": seed, "temperature": 1.0, "top_p": 0.9}
        if draws:
            body |= {"modalities": ["image"], "max_tokens": 34, "draw_options": {"steps": args.draw_steps}}
        else:
            body |= {"modalities": ["text"], "max_tokens": args.max_tokens}
        bodies.append(body)
    return bodies


def rows(args: argparse.Namespace, name: str, url: str, server: "Server | None", expected: list | None) -> None:
    """Print a row per load."""
    bodies = requests_of(args, args.requests)
    measure(url, bodies[: min(16, len(bodies))], clients=4)  # warm-up
    for load_name, options in [
        *((f"{clients} clients", {"clients": clients}) for clients in args.clients),
        *((f"{rate:g} requests/s", {"rate": rate}) for rate in args.rate),
    ]:
        before = server and server.cpu_seconds()
        results, seconds = measure(url, bodies, **options)
        cpu_s = server and server.cpu_seconds() - before
        print(row(name, load_name, results, seconds, cpu_s, expected), flush=True)


def measure(url: str, bodies: list[dict], **options) -> tuple[list[dict], float]:
    """Send requests from a process of its own."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(bodies, file)
        file.flush()
        client = json.dumps({"url": url, "path": file.name, **options})
        done = subprocess.run(
            [sys.executable, __file__, "--client", client], capture_output=True, text=True, check=True
        )
    sys.stderr.write(done.stderr)  # the errors of requests
    found = json.loads(done.stdout.splitlines()[-1])
    return found["results"], found["seconds"]


def row(
    name: str, load_name: str, results: list[dict], seconds: float, cpu_s: float | None, expected: list | None
) -> str:
    good = [one for one in results if one["error"] is None]
    tokens = sum(one["tokens"] for one in good)
    wrong = "" if expected is None else sum(answer_of(one) != expected[one["number"]] for one in good)

    def percentiles(values: list[float], *ranks: int) -> str:
        return " / ".join(f"{1e3 * np.percentile(values, rank):.0f}" for rank in ranks) if values else ""

    gaps = [gap for one in good for gap in one["gaps"]]
    per_token = [
        (one["latency"] - one["first"]) / (one["tokens"] - 1) for one in good if one["tokens"] > 1 and not one["images"]
    ]
    images = [one["image_s"] for one in good if one["image_s"] is not None]
    cpu_ms = f"{1e3 * cpu_s / tokens:.2f}" if cpu_s and tokens else ""
    return (
        f"| {name} | {load_name} | {len(good) / seconds:.2f} | {tokens / seconds:.1f} "
        f"| {sum(one['images'] for one in good) / seconds:.2f} | {percentiles([one['first'] for one in good], 50, 99)} "
        f"| {percentiles(gaps, 50, 99)} | {percentiles(per_token, 50)} "
        f"| {f'{np.median(images):.2f}' if images else ''} | {cpu_ms} "
        f"| {len(results) - len(good)} | {wrong} |"
    )


async def load(url: str, path: str, clients: int | None = None, rate: float | None = None) -> dict:
    """Send the requests of a file, from so many clients or at a rate, and measure each."""
    import httpx

    bodies = json.loads(Path(path).read_text())
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as http:
        begin = time.perf_counter()
        if clients is not None:
            queue = iter(enumerate(bodies))

            async def client() -> list[dict]:
                return [await ask(http, number, body) for number, body in queue]

            parts = await asyncio.gather(*(client() for _ in range(clients)))
            results = [one for part in parts for one in part]
        else:
            gaps = np.random.default_rng(1).exponential(size=len(bodies))
            times = np.cumsum(gaps) * (len(bodies) / rate / gaps.sum())

            async def later(delay: float, number: int, body: dict) -> dict:
                await asyncio.sleep(delay)
                return await ask(http, number, body)

            results = await asyncio.gather(
                *(later(delay, *one) for delay, one in zip(times.tolist(), enumerate(bodies), strict=True))
            )
        return {"results": list(results), "seconds": time.perf_counter() - begin}


async def ask(http, number: int, body: dict) -> dict:
    begin = time.perf_counter()
    result = {"number": number, "error": None, "first": 0.0, "gaps": [], "tokens": 0, "images": 0, "image_s": None,
              "latency": 0.0, "text": "", "codes": [], "finished": False}  # fmt: skip
    last = None
    try:
        content = {**body, "stream": True, "stream_options": {"include_usage": True}}
        async with http.stream("POST", "/v1/chat/completions", json=content) as response:
            if response.status_code != 200:
                raise RuntimeError(f"status {response.status_code}: {(await response.aread())[:200]!r}")
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event, now = json.loads(line[6:]), time.perf_counter()
                if "error" in event:
                    raise RuntimeError(event["error"]["message"])
                result["tokens"] = (event.get("usage") or {}).get("completion_tokens", result["tokens"])
                if not event["choices"]:
                    result["finished"] = True  # the usage comes last
                    continue
                delta = event["choices"][0]["delta"]
                result["text"] += delta.get("content") or ""
                result["codes"] += [one["codes"] for one in delta.get("segments", ()) if one["type"] == "image"]
                for image in delta.get("images", ()):
                    check_image(image["image_url"]["url"])
                    result["images"] += 1
                    result["image_s"] = now - begin
                if last is None:
                    result["first"] = now - begin
                elif not delta.get("images"):
                    result["gaps"].append(now - last)
                result["latency"], last = now - begin, now
        if not result["finished"]:
            raise RuntimeError("an answer without its end")
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"
        print(result["error"], file=sys.stderr)
    return result


def check_image(url: str) -> None:
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        image.load()


def answer_of(result: dict) -> list:
    return [result["text"], result["codes"], result["images"]]


def expected_answers(args: argparse.Namespace, model: Path) -> list:
    """Return what `seed-jax generate` answers to each request: text, codes and the number of images."""
    from seed_jax.inference.chat.prompts import USER, Message, build_prompt
    from seed_jax.inference.generation.batching import Request
    from seed_jax.inference.generation.sampling_params import SamplingParams
    from seed_jax.inference.generation.segments import ImageSegment, TextSegment
    from seed_jax.inference.seed_llama import SeedLlama

    llama, answers = SeedLlama.load(model), []
    requests = []
    for body in requests_of(args, args.requests):
        message = Message(USER, (TextSegment(body["messages"][0]["content"]),))
        params = SamplingParams(
            max_new_tokens=body["max_tokens"], mode=body["modalities"][0], temperature=body["temperature"],
            top_p=body["top_p"], seed=body["seed"],
        )  # fmt: skip
        requests.append(Request(build_prompt([message], llama.style, llama.generator.vocabulary), params))
    for answer in llama.generator.generate(requests, batch_size=64):
        text = "".join(one.text for one in answer.segments if isinstance(one, TextSegment))
        codes = [list(one.codes) for one in answer.segments if isinstance(one, ImageSegment)]
        answers.append([text, codes, len(codes)])
    return answers


def soak(args: argparse.Namespace, server: Server, expected: list | None) -> None:
    """Repeat the largest closed loop, and print how the server's memory grows."""
    bodies, deadline, samples = requests_of(args, args.requests), time.monotonic() + 60 * args.minutes, []
    while time.monotonic() < deadline:
        before = server.cpu_seconds()
        results, seconds = measure(server.url, bodies, clients=max(args.clients))
        samples.append((time.monotonic(), server.resident_mib()))
        load_name, cpu_s = f"{max(args.clients)} clients, again", server.cpu_seconds() - before
        print(row(f"{args.slots} slots", load_name, results, seconds, cpu_s, expected), flush=True)
    half = samples[len(samples) // 2 :]
    slope = 60 * np.polyfit(*zip(*half, strict=True), 1)[0] if len(half) > 1 else float("nan")
    print(f"\nMemory: {samples[0][1]:.0f} MiB, at the end {samples[-1][1]:.0f} MiB; slope of the second half "
          f"{slope:.2f} MiB per minute.")  # fmt: skip


def write_bundle(folder: Path, sizes: tuple[int, ...]) -> Path:
    """Write a model of such sizes with random weights, a tiny image tokenizer and a tiny decoder."""
    import jax
    import jax.numpy as jnp

    from seed_jax.checkpoint import model_dir
    from seed_jax.data.text.vocabulary import train_small
    from seed_jax.inference.language_model import write_bundle as write
    from seed_jax.models.diffusion import Unclip, UnclipConfig
    from seed_jax.models.llama.model import Llama, LlamaConfig
    from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig, abstract_params
    from seed_jax.sharding import unbox

    vocab, hidden, wide, layers, heads, length = sizes
    config = LlamaConfig(vocab, hidden, wide, layers, heads, heads, max_length=length)
    num_codes = vocab - 300 - 2
    files = folder / "vocabulary"
    train_small(["a cat on a mat in a hat", "a dog in the fog on a log"], files, 300, num_codes)
    draws = np.random.default_rng(0).standard_normal(1_000_003, np.float32)

    def random(tree, scale):
        def fill(path, leaf):
            name = str(path[-1])
            return (
                np.ones(leaf.shape, np.float32)
                if "scale" in name or "std" in name
                else (scale * np.resize(draws, leaf.shape))
            )

        return jax.tree_util.tree_map_with_path(fill, unbox(tree))

    llama = jax.eval_shape(Llama(config).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    names = {file.name: file for file in files.iterdir()}
    model_dir.save(
        folder / "llama",
        "llama",
        {"sizes": config.to_dict(), "image_tokenizer": None},
        random(llama, 0.02),
        files=names,
    )
    tokenizer = dataclasses.replace(SeedTokenizerConfig.tiny(), num_codes=num_codes)
    model_dir.save(
        folder / "tokenizer", "seed_tokenizer", {"sizes": tokenizer.to_dict()}, random(abstract_params(tokenizer), 0.02)
    )
    unclip = UnclipConfig.tiny(tokenizer.embedding_width)
    shapes = jax.eval_shape(Unclip(unclip).init, jax.random.key(0))
    model_dir.save(folder / "decoder", "unclip", {"sizes": unclip.to_dict()}, random(shapes, 0.05))
    parts = {"language_model": folder / "llama", "image_tokenizer": folder / "tokenizer"}
    write(folder / "bundle", **parts, decoder=folder / "decoder", prompt_style="vicuna")
    return folder / "bundle"


def serve_transformers(port: int, sizes: tuple[int, ...]) -> None:
    """Serve transformers' `generate` behind FastAPI, one request at a time, with ids in place of text."""
    import threading

    import torch
    import transformers
    import uvicorn
    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse

    vocab, hidden, wide, layers, heads, length = sizes
    config = transformers.LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=wide, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=length,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    lock = threading.Lock()
    app = FastAPI()

    @app.post("/v1/chat/completions")
    def chat(body: dict) -> StreamingResponse:
        prompt = torch.tensor([[1, *(3 + byte for byte in body["messages"][0]["content"].encode())]])

        def events():
            with lock:
                torch.manual_seed(body["seed"])
                count = body["max_tokens"]
                ids = model.generate(
                    prompt, attention_mask=torch.ones_like(prompt), do_sample=True, top_p=body["top_p"], top_k=0,
                    min_new_tokens=count, max_new_tokens=count, pad_token_id=0,
                )  # fmt: skip
            text = " ".join(map(str, ids[0, prompt.shape[1] :].tolist()))
            yield "data: " + json.dumps({"choices": [{"delta": {"content": text}}]}) + "\n\n"
            yield "data: " + json.dumps({"choices": [], "usage": {"completion_tokens": count}}) + "\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="info")


if __name__ == "__main__":
    main()

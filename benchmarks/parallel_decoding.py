"""Forward passes and processor time of an image with and without parallel decoding.

    python benchmarks/parallel_decoding.py --quickstart DIR [--prompts 50] [--batch-size 1]
    python benchmarks/parallel_decoding.py --hidden 1024 --layers 16 --prompts 3

With the workdir of a quickstart (configs/quickstart.py) it draws held-out captions and edits held-out images; otherwise
a random language model, the worst case, answers random prompts. Asserts that all ids equal those of sequential decoding
(float32; --dtype bfloat16 reports the share). Prints a Markdown table: passes of the model per image (sequential: 34
with `<img>` and `</img>`), and seconds of wall and processor time per image.
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from seed_jax.convert.llama.key_table import abstract_params
from seed_jax.data.inspect.code_usage import most_frequent_codes
from seed_jax.data.text.vocabulary import Vocabulary, train_small
from seed_jax.data.world import make_sample, render, wording
from seed_jax.inference.chat.prompts import USER, Message, build_prompt
from seed_jax.inference.generation.batching import Request, bucket
from seed_jax.inference.generation.generator import CHUNK_TOKENS, Generator
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.generation.segments import TextSegment
from seed_jax.inference.image_tokenizer import ImageTokenizer
from seed_jax.models.llama.model import LlamaConfig
from seed_jax.precision import Precision
from seed_jax.recipes.pipeline import SEED, drawing_prompt, image_segment

ONE_IMAGE = SamplingParams(34, mode="image", num_images=1)
METHODS = {
    "greedy": ONE_IMAGE,
    "sampling, top-p 0.5": dataclasses.replace(ONE_IMAGE, temperature=1.0, top_p=0.5),
    "sampling": dataclasses.replace(ONE_IMAGE, temperature=1.0),
    "guidance 2": dataclasses.replace(ONE_IMAGE, guidance_scale=2.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quickstart", type=Path, metavar="DIR", help="workdir of a quickstart")
    parser.add_argument("--hidden", type=int, default=64, help="width of the random model")
    parser.add_argument("--layers", type=int, default=2, help="layers of the random model")
    parser.add_argument("--codes", type=int, default=8192, help="codebook of the random model")
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args()
    precision = Precision(args.dtype, args.dtype)
    if args.quickstart:
        generator = Generator.load(args.quickstart / "sft", precision=precision)
        captions, edits = quickstart_prompts(args.quickstart, generator.vocabulary, args.prompts)
        mode = tuple(most_frequent_codes([args.quickstart / "data/coded/captions"]))
        cases = [("captions", captions, None), ("captions", captions, mode), ("edits", edits, None)]
    else:
        generator = random_model(args, precision)
        draw = np.random.default_rng(0)
        prompts = [[1, *draw.integers(3, 300, 40).tolist()] for _ in range(args.prompts)]
        cases = [("random", prompts, None)]
    print("| prompts | first draft | method | equal ids | passes per image | most | s per image, sequential | parallel "
          "| CPU s, sequential | parallel |")  # fmt: skip
    print("|---|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, prompts, draft_codes in cases:
        generator.batcher = dataclasses.replace(generator.batcher, draft_codes=draft_codes)
        draft = "source image" if name == "edits" else "most frequent codes" if draft_codes else "code 0"
        for method in args.methods:
            report(generator, prompts, METHODS[method], args, f"| {name} | {draft} | {method}")


def report(generator: Generator, prompts: Sequence[list[int]], params: SamplingParams, args, label: str) -> None:
    sequential = measure(generator, prompts, params, args.batch_size)
    parallel = measure(generator, prompts, dataclasses.replace(params, parallel_decoding=True), args.batch_size)
    equal = np.mean([a == b for a, b in zip(sequential.ids, parallel.ids, strict=True)])
    assert equal == 1 or args.dtype != "float32"
    count = len(prompts)
    print(f"{label} | {equal:.0%} | {np.mean(parallel.passes):.1f} | {max(parallel.passes)} "
          f"| {sequential.wall_s / count:.4f} | {parallel.wall_s / count:.4f} "
          f"| {sequential.cpu_s / count:.4f} | {parallel.cpu_s / count:.4f} |", flush=True)  # fmt: skip


@dataclasses.dataclass
class Measurement:
    """Ids of each answer, passes of each batch, and the time of all."""

    ids: list[list[int]]
    passes: list[int]
    wall_s: float
    cpu_s: float


def measure(generator: Generator, prompts: Sequence[list[int]], params: SamplingParams, batch_size: int) -> Measurement:
    """Answer the prompts, with the seeds 0, 1, ...; one batch of each shape once more before, to compile it."""
    requests = [Request(prompt, dataclasses.replace(params, seed=seed)) for seed, prompt in enumerate(prompts)]
    batches = [requests[start : start + batch_size] for start in range(0, len(requests), batch_size)]
    shapes = {bucket(max(len(request.prompt) for request in batch)): batch for batch in batches}
    for batch in shapes.values():
        answer(generator, batch)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    results = [answer(generator, batch) for batch in batches]
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return Measurement([ids for batch, _ in results for ids in batch], [passes for _, passes in results], wall_s, cpu_s)


def answer(generator: Generator, requests: Sequence[Request]) -> tuple[list[list[int]], int]:
    """Return the ids of a batch and how many decode steps it took."""
    batch = generator.batcher.batch(requests, ["a prompt"] * len(requests))
    *_, outputs = generator.run(batch, CHUNK_TOKENS)
    ids = [outputs.ids[row, : outputs.lengths[row]].tolist() for row in range(len(requests))]
    return ids, int(outputs.num_steps)


def quickstart_prompts(workdir: Path, vocabulary: Vocabulary, count: int) -> tuple[list[list[int]], list[list[int]]]:
    """Return requests to draw held-out captions and to edit held-out images."""
    drawn = [make_sample("captions", SEED, index, held_out=True).items[0] for index in range(count)]
    edits: list[Any] = [make_sample("edits", SEED, index, held_out=True).items for index in range(count)]
    tokenizer = ImageTokenizer.load(workdir / "codebook")
    size = tokenizer.config.image_size
    sources = [
        Image.fromarray(render(items[0], size, np.random.default_rng(index))) for index, items in enumerate(edits)
    ]
    codes = tokenizer.encode(sources)
    draw = [drawing_prompt(wording.captions(scene)[0]) for scene in drawn]
    edit = [[image_segment(row), TextSegment(str(items[2]))] for row, items in zip(codes, edits, strict=True)]

    def encode(prompts: Sequence[Sequence[Any]]) -> list[list[int]]:
        return [build_prompt([Message(USER, list(prompt))], "vicuna", vocabulary) for prompt in prompts]

    return encode(draw), encode(edit)


def random_model(args: argparse.Namespace, precision: Precision) -> Generator:
    with tempfile.TemporaryDirectory() as folder:
        train_small(["a cat on a mat in a hat", "a dog in the fog on a log"], Path(folder), 300, args.codes)
        vocabulary = Vocabulary.load(folder)
    heads = max(1, args.hidden // 64)
    config = LlamaConfig(vocabulary.size, args.hidden, args.hidden * 8 // 3, args.layers, heads, heads, max_length=256)
    normal = 0.02 * np.random.default_rng(0).standard_normal(1_000_003, np.float32)  # values repeat after a million

    def fill(path: Any, leaf: Any) -> np.ndarray:
        return np.ones(leaf.shape, np.float32) if path[-1].key == "scale" else np.resize(normal, leaf.shape)

    params = jax.tree_util.tree_map_with_path(fill, abstract_params(config))
    return Generator(config, params, vocabulary, precision=precision)


if __name__ == "__main__":
    main()

"""Count how many of 5,000 answers are well-formed: only text and images of exactly 32 codes, as many as requested.

    python benchmarks/well_formed.py [--prompts 5000] [--model DIR]

A tiny random language model answers random prompts greedily, by sampling, with beams, with guidance, and without the
grammar (as the original does); with --model, that model does so too. Prints a Markdown table.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from tqdm import tqdm

from seed_jax.data.text.vocabulary import Vocabulary, train_small
from seed_jax.inference.generation.batching import Request
from seed_jax.inference.generation.generator import Generator
from seed_jax.inference.generation.sampling_params import ImageConstraint, SamplingParams
from seed_jax.inference.generation.segments import Generation, ImageSegment, MalformedSegment
from seed_jax.models.llama.model import Llama, LlamaConfig

METHODS = {
    "greedy": SamplingParams(),
    "sampling (t 1.0)": SamplingParams(temperature=1.0),
    "sampling (t 1.0, top-p 0.5)": SamplingParams(temperature=1.0, top_p=0.5),
    "3 beams": SamplingParams(beams=3),
    "3 beams, sampled": SamplingParams(beams=3, temperature=1.0),
    "guided (scale 3)": SamplingParams(guidance_scale=3.0, temperature=1.0),
    "no grammar, greedy": SamplingParams(mode="none"),
    "no grammar, sampling": SamplingParams(mode="none", temperature=1.0),
}
# (image mode, exact number of images), assigned in turn, so that the requests of a batch differ.
CONSTRAINTS = [("free", None), ("image", None), ("some", None), ("text", None), ("free", 1), ("free", 0), ("image", 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument(
        "--tokens", type=int, default=64, help="each answer is limited to a random number of tokens from 34 to this"
    )
    parser.add_argument("--model", type=Path, help="model directory or training workdir to be measured as well")
    args = parser.parse_args()
    models = {"random": random_model()} | ({args.model.name: Generator.load(args.model)} if args.model else {})
    print("| model | method | answers | well-formed | images begun | complete images |")
    print("|---|---|---:|---:|---:|---:|")
    for name, generator in models.items():
        for method, params in METHODS.items():
            requests = list(make_requests(generator, params, args))
            good = begun = complete = 0
            for start in tqdm(range(0, len(requests), args.batch_size), desc=method, leave=False):
                part = requests[start : start + args.batch_size]
                for request, answer in zip(part, generator.generate(part), strict=True):
                    good += well_formed(request, answer)
                    begun += sum(token == generator.grammar.boi for token in answer.ids)
                    complete += sum(isinstance(segment, ImageSegment) for segment in answer.segments)
            rate = f"{complete} ({100 * complete / begun:.1f} %)" if begun else "0"
            print(f"| {name} | {method} | {len(requests)} | {good} | {begun} | {rate} |", flush=True)


def well_formed(request: Request, answer: Generation) -> bool:
    """Return whether an answer consists of text and complete images, as many as the request asks for."""
    if any(isinstance(segment, MalformedSegment) for segment in answer.segments):
        return False
    images = [isinstance(segment, ImageSegment) for segment in answer.segments]
    constraint = request.sampling_params.image_constraint
    if not constraint.enforced:
        constraint = ImageConstraint()
    if constraint.image_first and not (images and images[0]):
        return False
    return constraint.min_images <= sum(images) <= constraint.max_images


def make_requests(generator: Generator, params: SamplingParams, args: argparse.Namespace) -> Iterator[Request]:
    rng = np.random.default_rng(0)
    for number in range(args.prompts):
        mode, num_images = CONSTRAINTS[number % len(CONSTRAINTS)]
        own = dataclasses.replace(params, seed=number, max_new_tokens=int(rng.integers(34, args.tokens + 1)))
        if params.mode != "none":
            own = dataclasses.replace(own, mode=mode, num_images=num_images)
        yield Request([1, *rng.integers(3, generator.vocabulary.num_text, rng.integers(1, 30)).tolist()], own)


def random_model() -> Generator:
    """Return a language model with random weights, with logits far from uniform, that often begins images."""
    with tempfile.TemporaryDirectory() as directory:
        train_small(["a cat on a mat in a hat", "a dog in the fog on a log"], Path(directory), 300, 64)
        vocabulary = Vocabulary.load(directory)
    config = LlamaConfig(vocabulary.size, 16, 24, 2, 2, 1, max_length=128)
    params = meta.unbox(jax.jit(Llama(config).init)(jax.random.key(3), jnp.zeros((1, 2), jnp.int32)))["params"]
    params = jax.tree.map(lambda x: 30 * x if x.shape[-1] > 16 else x, params)
    params["lm_head"]["kernel"] = params["lm_head"]["kernel"].at[:, vocabulary.boi].multiply(3.0)
    return Generator(config, params, vocabulary)


if __name__ == "__main__":
    main()

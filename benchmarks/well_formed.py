"""How many of 5,000 answers are well-formed: only text and images of exactly 32 codes, as many as asked for.

    python benchmarks/well_formed.py [--prompts 5000] [--model DIR]

Random tiny language models answer random prompts, greedily, sampling, with beams, guided, and without the grammar (the
original's freedom); with --model, that model too. Prints a table in Markdown.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from tqdm import tqdm

from seed_jax.data.text.vocabulary import Vocabulary, train_small
from seed_jax.inference.generation.generator import Generation, Generator, Request, Settings
from seed_jax.inference.generation.grammar import ImageRule
from seed_jax.inference.generation.segments import ImageSegment, MalformedSegment
from seed_jax.models.llama.model import Llama, LlamaConfig

METHODS = {
    "greedy": Settings(),
    "sampling (t 1.0)": Settings(temperature=1.0),
    "sampling (t 1.0, top-p 0.5)": Settings(temperature=1.0, top_p=0.5),
    "3 beams": Settings(beams=3),
    "3 beams, drawn": Settings(beams=3, temperature=1.0),
    "guided (scale 3)": Settings(guidance_scale=3.0, temperature=1.0),
    "no grammar, greedy": Settings(mode="none"),
    "no grammar, sampling": Settings(mode="none", temperature=1.0),
}
# In turn, so that rows of one batch differ: mode and exact number of images.
RULES = [("free", None), ("image", None), ("some", None), ("text", None), ("free", 1), ("free", 0), ("image", 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64, help="most tokens of an answer; drawn from 34 to this")
    parser.add_argument("--model", type=Path, help="model directory or training workdir to be tried as well")
    args = parser.parse_args()
    models = {"random": random_model()} | ({args.model.name: Generator.load(args.model)} if args.model else {})
    print("| model | method | answers | well-formed | images begun | whole images |")
    print("|---|---|---:|---:|---:|---:|")
    for name, generator in models.items():
        for method, settings in METHODS.items():
            requests = list(make_requests(generator, settings, args))
            good, begun, whole = 0, 0, 0
            for start in tqdm(range(0, len(requests), args.batch_size), desc=method, leave=False):
                part = requests[start : start + args.batch_size]
                for request, answer in zip(part, generator.generate(part), strict=True):
                    good += well_formed(request, answer)
                    begun += sum(token == generator.grammar.boi for token in answer.ids)
                    whole += sum(isinstance(segment, ImageSegment) for segment in answer.segments)
            rate = f"{whole} ({100 * whole / begun:.1f} %)" if begun else "0"
            print(f"| {name} | {method} | {len(requests)} | {good} | {begun} | {rate} |", flush=True)


def well_formed(request: Request, answer: Generation) -> bool:
    """Return whether an answer is text and whole images, as many as its settings ask for."""
    if any(isinstance(segment, MalformedSegment) for segment in answer.segments):
        return False
    images = [isinstance(segment, ImageSegment) for segment in answer.segments]
    rule = request.settings.rule if request.settings.mode != "none" else ImageRule()
    return rule.least <= sum(images) <= rule.most and (images[0] if rule.now else True)


def make_requests(generator: Generator, settings: Settings, args: argparse.Namespace):
    draw = np.random.default_rng(0)
    for number in range(args.prompts):
        mode, images = RULES[number % len(RULES)]
        mine = dataclasses.replace(settings, seed=number, max_new_tokens=int(draw.integers(34, args.tokens + 1)))
        if settings.mode != "none":
            mine = dataclasses.replace(mine, mode=mode, images=images)
        yield Request([1, *draw.integers(3, generator.vocabulary.num_text, draw.integers(1, 30)).tolist()], mine)


def random_model() -> Generator:
    """Return a language model of random weights, sharp enough to be no uniform noise and fond of images."""
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

"""Speed and memory of evaluation: caption metrics, ranked choices, FID, and waiting for images.

    python benchmarks/evaluation.py captions --pycocoevalcap DIR
    python benchmarks/evaluation.py choices
    python benchmarks/evaluation.py fid
    python benchmarks/evaluation.py reading

`captions` tokenizes 5,000 images with five references each and computes CIDEr, in turn with pycocoevalcap: DIR is where
`pip install --no-deps --target DIR pycocoevalcap` put it, and it needs Java. `choices` ranks four choices after one
prompt, and scores one. `fid` accumulates two sets of 50,000 feature rows and computes their distance; its memory is as
the kernel counts it. `reading` captions photographs of 640 x 480 pixels; the log has the time spent waiting for them.
"""

import argparse
import dataclasses
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

IMAGES, REFERENCES = 5000, 5
_TEXT = (
    "a an the two three man woman dog cat horse bike car train plate pizza table street field beach snow tree red blue"
    " white black large small young old sitting standing riding holding eating playing looking on in at with next to of"
    " and near under over its his her is are t-shirt baseball bat kite frisbee o'clock don't it's 10:30 no. mr."
)
_WORDS = _TEXT.split()


def captions(count: int, seed: int) -> list[str]:
    """Return captions of eight to fourteen words."""
    rng = np.random.default_rng(seed)
    return [f"{' '.join(rng.choice(_WORDS, rng.integers(8, 15))).capitalize()}." for _ in range(count)]


def measure_captions(args: argparse.Namespace) -> None:
    """Tokenize and score with this package and with pycocoevalcap in turn."""
    from seed_jax.evaluation.metrics.cider import cider
    from seed_jax.evaluation.metrics.ngrams import count_ngrams
    from seed_jax.evaluation.metrics.ptb import tokenize

    candidates, references = captions(IMAGES, 0), captions(IMAGES * REFERENCES, 1)

    def ours() -> float:
        tokens = tokenize(candidates)
        flat = tokenize(references)
        grouped = [flat[start : start + REFERENCES] for start in range(0, len(flat), REFERENCES)]
        return cider(count_ngrams(tokens, grouped))[0]

    def theirs() -> float:
        sys.path.insert(0, args.pycocoevalcap)
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

        def grouped(texts: list[str], size: int) -> dict[int, list[dict[str, str]]]:
            return {
                index: [{"caption": text} for text in texts[start : start + size]]
                for index, start in enumerate(range(0, len(texts), size))
            }

        tokenizer = PTBTokenizer()
        predicted = tokenizer.tokenize(grouped(candidates, 1))
        true = tokenizer.tokenize(grouped(references, REFERENCES))
        return Cider().compute_score(true, predicted)[0]

    sides = {"seed_jax": ours} | ({"pycocoevalcap": theirs} if args.pycocoevalcap else {})
    for round_number in range(args.rounds):
        for name, run in sides.items():
            began, cpu = time.perf_counter(), _cpu_seconds()
            score = run()
            print(
                f"round {round_number + 1}  {name:14} {time.perf_counter() - began:6.2f} s"
                f"  {_cpu_seconds() - cpu:6.2f} CPU s  CIDEr {score:.12f}"
            )


def _cpu_seconds() -> float:
    """Return the processor time of this process and of the children it waited for, such as Java."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure_choices(args: argparse.Namespace) -> None:
    """Rank four choices after one prompt, and score one, in turn."""
    import jax
    import jax.numpy as jnp

    from seed_jax.data.text.vocabulary import Vocabulary, train_small
    from seed_jax.inference.generation.generator import Generator
    from seed_jax.inference.generation.scoring import Scorer
    from seed_jax.models.llama.model import Llama, LlamaConfig
    from seed_jax.sharding import unbox

    with tempfile.TemporaryDirectory() as directory:
        train_small([" ".join(_WORDS)] * 4, Path(directory) / "vocabulary", vocab_size=300, num_codes=128)
        vocabulary = Vocabulary.load(Path(directory) / "vocabulary")
    config = dataclasses.replace(
        LlamaConfig.tiny(vocabulary.size),
        hidden_size=1024, intermediate_size=2816, num_layers=8, num_heads=16, max_length=512,
    )  # fmt: skip
    shapes = unbox(jax.eval_shape(Llama(config).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.02 * rng.standard_normal(leaf.shape, np.float32), shapes)
    scorer = Scorer(Generator(config, params, vocabulary))
    # An image, a question of 30 tokens, and choices of four tokens; eight questions at a time.
    prompts = [rng.integers(5, vocabulary.size, 34 + 30).tolist() for _ in range(8)]
    four = [[rng.integers(5, vocabulary.size, 4).tolist() for _ in range(4)] for _ in prompts]
    one = [group[:1] for group in four]
    times: dict[str, list[float]] = {"one choice": [], "four choices": []}
    for continuations in (one, four):
        scorer.score(prompts, continuations)  # compiles
    for _ in range(args.rounds):
        for name, continuations in (("one choice", one), ("four choices", four)):
            began = time.perf_counter()
            scorer.score(prompts, continuations)
            times[name].append(time.perf_counter() - began)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    for name, seconds in medians.items():
        print(f"{name:14} {1000 * seconds / len(prompts):7.1f} ms per question")
    print(f"ratio          {medians['four choices'] / medians['one choice']:7.2f}")


def measure_fid(args: argparse.Namespace) -> None:
    """Run `fid-once` in a separate process."""
    from benchmarks.peaks import measure

    run = measure([sys.executable, __file__, "fid-once"])
    print(run.line("FID of 50,000 rows", 2 * 2**30))


def fid_once(args: argparse.Namespace) -> None:
    """Accumulate two sets of 50,000 rows of 2048 values in batches of 50, and compute their distance."""
    from seed_jax.evaluation.metrics.frechet import FeatureAccumulator, frechet_distance

    statistics = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        accumulator = FeatureAccumulator()
        for _ in range(1000):
            accumulator.update(rng.standard_normal((50, 2048), np.float32) + 0.1 * seed)
        statistics.append(accumulator.statistics())
    print(frechet_distance(*statistics))


def measure_reading(args: argparse.Namespace) -> None:
    """Caption photographs with a small random model; the log of the run has the share of time spent waiting."""
    from PIL import Image

    from tests.evaluation import datasets

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        model = datasets.write_model(root / "models")
        rng = np.random.default_rng(0)
        images: list[dict[str, Any]] = []
        for number in range(64):
            coarse = rng.integers(0, 255, (30, 40, 3), np.uint8)
            path = root / "data/val2014" / f"COCO_val2014_{number + 1:012d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
            images.append(
                {"filepath": "val2014", "filename": path.name, "split": "test", "cocoid": number + 1,
                 "sentences": [{"raw": "A cat."}]}
            )  # fmt: skip
        (root / "data/dataset_coco.json").write_text(json.dumps({"images": images}))
        command = [sys.executable, "-m", "seed_jax.cli", "eval", "coco_caption", "--model", str(model)]
        subprocess.run([*command, "--data", str(root / "data"), "--out", str(root / "out")], check=True)


BENCHMARKS = {
    "captions": measure_captions,
    "choices": measure_choices,
    "fid": measure_fid,
    "fid-once": fid_once,
    "reading": measure_reading,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("--pycocoevalcap", default="", metavar="DIR", help="where pycocoevalcap is installed")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    args = parser.parse_args()
    BENCHMARKS[args.benchmark](args)


if __name__ == "__main__":
    main()

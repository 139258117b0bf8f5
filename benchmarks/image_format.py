"""Why free-running models break images: codes in causal or bilateral order, along training, by sampling and by size.

    python benchmarks/image_format.py --workdir DIR [--seeds 42 43 44] [--arms causal bilateral] [--prompts 500]
    python benchmarks/image_format.py --workdir DIR --short

The second paper counts 2,134 valid images of 5,000 with bilateral codes, and 4,997 with causal ones. Here both
tokenizers are trained on the synthetic world with the paper's 8,192 codes, and language models of several sizes on
their codes; the same command resumes. Measured at checkpoints of pre-training and after instruction tuning on mixed
text, on held-out captions:

- an image is valid if exactly 32 codes and `</img>` follow `<img>`, which ends the prompt, without the grammar;
- bits per code by position, of the true codes among all codes.

Prints Markdown tables and writes DIR/image_format.json; with matplotlib, DIR/image_format.png, too.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax.core import meta
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from configs import quickstart
from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.data.text.vocabulary import CODES_PER_IMAGE, Vocabulary
from seed_jax.data.world import make_sample, render, wording
from seed_jax.files import write_json
from seed_jax.inference.chat.prompts import USER, Message, build_prompt
from seed_jax.inference.generation.generator import Generator
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.generation.scoring import Scorer
from seed_jax.inference.image_tokenizer import ImageTokenizer
from seed_jax.models.llama.config import LlamaConfig
from seed_jax.models.llama.model import Llama
from seed_jax.recipes.pipeline import SEED, drawing_prompt
from seed_jax.recipes.quickstart.config import QuickstartConfig
from seed_jax.recipes.quickstart.recipe import Quickstart
from seed_jax.recipes.recipe import Step
from seed_jax.train.config.schema import parse

ARMS = {"causal": True, "bilateral": False}  # -> tokenizer.causal
SIZES = {"64x2": (64, 172, 2, 2), "128x2": (128, 344, 2, 4), "256x4": (256, 688, 4, 8)}  # width x layers
TUNED = "128x2"  # the size that is instruction-tuned
CHECKPOINT_STEPS, TUNING_STEPS = 50, 600
SAMPLING = {
    "greedy": SamplingParams(mode="none", max_new_tokens=CODES_PER_IMAGE + 1),
    "t 1.0": SamplingParams(mode="none", temperature=1.0, max_new_tokens=CODES_PER_IMAGE + 1),
    "t 1.0, top-p 0.9": SamplingParams(mode="none", temperature=1.0, top_p=0.9, max_new_tokens=CODES_PER_IMAGE + 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="one directory per arm and seed is made in it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="width x layers")
    parser.add_argument("--num-codes", type=int, default=8192, help="size of the codebook")
    parser.add_argument("--prompts", type=int, default=500, help="images to generate per checkpoint and sampling")
    parser.add_argument("--short", action="store_true", help="run every step once")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    for name in ("absl", "matplotlib"):  # Orbax and matplotlib describe every file
        logging.getLogger(name).setLevel(logging.WARNING)
    rows = []
    for seed in args.seeds:
        for arm in args.arms:
            workdir = args.workdir / f"{arm}_{seed}"
            ImageFormat(study_config(arm, seed, args), workdir, args.sizes).run()
            for row in measure(workdir, args):
                rows.append({"arm": arm, "seed": seed, **row})
    write_json(args.workdir / "image_format.json", rows)
    print(validity_table(rows), bits_table(rows), sep="\n\n")
    plot(rows, args.workdir / "image_format.png")


def study_config(arm: str, seed: int, args: argparse.Namespace) -> ml_collections.ConfigDict:
    """Return the quickstart's config with the codebook of the paper, and a pre-training of each size."""
    config = quickstart.get_config("shortest" if args.short else "world")
    config.seed, config.tokenizer.causal = seed, ARMS[arm]
    config.stages.codebook.model.num_codes = args.num_codes
    config.stages.sft.steps = min(config.stages.sft.steps, TUNING_STEPS)
    every = 2 if args.short else CHECKPOINT_STEPS
    for size in args.sizes:
        stage = ml_collections.ConfigDict(config.stages.pretrain.to_dict())
        stage.checkpoint.update(every_steps=every, keep_last=1, keep_every=every)
        config.stages[f"pretrain_{size}"] = stage
    return config


class ImageFormat(Quickstart):
    """The quickstart without a decoder, and with language models of several sizes."""

    def __init__(self, config: ml_collections.ConfigDict, workdir: Path, sizes: Sequence[str]):
        super().__init__(parse(QuickstartConfig, config), workdir)
        self.sizes = sizes

    def steps(self) -> Iterator[Step]:
        yield Step("teacher", 4, self.unpack_teacher)
        yield Step("images", 16, self.build_images)
        yield Step("qformer", 64, self.train_qformer)
        yield Step("codebook", 120, self.train_codebook)
        yield Step("tokenize", 65, self.tokenize)
        for size in self.sizes:
            yield Step(f"pretrain_{size}", 120, lambda size=size: self.pretrain_size(size))
        if TUNED in self.sizes:
            yield Step("sft", 80, self.finetune)

    def pretrain_size(self, size: str) -> None:
        init = self.workdir / "init" / size
        if not init.is_dir():
            key = jax.random.key(self.config.seed)
            write_random_model(init, size, key, self.corpus.vocabulary, self.workdir / "codebook")
        paths = {"data.vocabulary": self.corpus.vocabulary, "model.init": init}
        self.train(f"pretrain_{size}", self.corpus.language_mixture("pretrain"), paths)

    def finetune(self) -> None:
        paths = {"data.vocabulary": self.corpus.vocabulary, "model.init": self.workdir / f"pretrain_{TUNED}"}
        self.train("sft", self.corpus.language_mixture("sft"), paths)


def write_random_model(out: Path, size: str, key: jax.Array, vocabulary: Path, tokenizer: Path) -> None:
    """Write a LLaMA of a size with random weights."""
    width, intermediate, layers, heads = SIZES[size]
    config = LlamaConfig(Vocabulary.load(vocabulary).size, width, intermediate, layers, heads, heads, max_length=512)
    params = meta.unbox(Llama(config).init(key, jnp.zeros((1, 2), jnp.int32)))["params"]
    keys = {"sizes": config.to_dict(), "image_tokenizer": str(tokenizer)}
    files = {path.name: path for path in vocabulary.iterdir()}
    model_dir.save(out, ModelKind.LLAMA, keys, params, files=files)


def measure(workdir: Path, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield one row per stage and checkpoint; measured ones are read from `measured.json`."""
    path = workdir / "measured.json"
    measured = json.loads(path.read_text()) if path.is_file() else {}
    tokenizer = ImageTokenizer.load(workdir / "codebook", batch_size=50)
    scenes = [make_sample("captions", SEED, index, True).items[0] for index in range(args.prompts)]
    captions = [wording.captions(scene)[0] for scene in scenes]
    side = QuickstartConfig().world.side
    pixels = [render(scene, side, np.random.default_rng([SEED, index])) for index, scene in enumerate(scenes)]
    codes = tokenizer.encode([Image.fromarray(image) for image in pixels])
    for stage in (*(f"pretrain_{size}" for size in args.sizes), *(["sft"] if TUNED in args.sizes else [])):
        generator = Generator.load(workdir / stage)
        scorer = Scorer(generator)  # compiled once: the checkpoints differ in their parameters only
        vocabulary = generator.vocabulary
        if stage == "sft":
            prompts = [build_prompt([Message(USER, drawing_prompt(text))], "vicuna", vocabulary) for text in captions]
        else:
            prompts = [[vocabulary.bos, *vocabulary.encode(text)] for text in captions]
        begun = [[*prompt, vocabulary.boi] for prompt in prompts]
        for step in checkpoint_steps(workdir / stage):
            key = f"{stage} {step}, {args.prompts} prompts"
            if key not in measured:
                stored = model_dir.restore_params(workdir / stage / "checkpoints" / str(step) / "params")
                generator.replace_params(stored["params"])
                scores = scorer.score_images(prompts, codes[:, None].tolist(), batch_size=50)
                bits = -np.array([group[0].log_probs for group in scores]) / np.log(2)
                valid = {}
                for name, params in SAMPLING.items():
                    answers = generator.generate(begun, params, batch_size=100)
                    valid[name] = float(np.mean([is_valid(answer.ids, vocabulary) for answer in answers]))
                measured[key] = {"bits": bits.mean(0).round(3).tolist(), "valid": valid}
                write_json(path, measured)
            yield {"stage": stage, "step": step, **measured[key]}


def checkpoint_steps(workdir: Path) -> list[int]:
    """Return the steps of a stage's checkpoints that are measured: every one at first, and then fewer."""
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    return [step for number, step in enumerate(steps) if number < 3 or number % 4 == 3 or step == steps[-1]]


def is_valid(ids: Sequence[int], vocabulary: Vocabulary) -> bool:
    """Whether exactly 32 codes and `</img>` come first in what follows `<img>`."""
    first, last = vocabulary.first_code, vocabulary.first_code + vocabulary.num_codes
    codes = all(first <= token < last for token in ids[:CODES_PER_IMAGE])
    return codes and len(ids) > CODES_PER_IMAGE and ids[CODES_PER_IMAGE] == vocabulary.eoi


def validity_table(rows: list[dict[str, Any]]) -> str:
    """Return the share of valid images, mean over the seeds with half the range."""
    lines = [f"| codes | model | step | {' | '.join(SAMPLING)} |", f"|---|---|---:|{'---:|' * len(SAMPLING)}"]
    for (arm, stage, step), group in _grouped(rows).items():
        cells = []
        for name in SAMPLING:
            values = 100 * np.array([row["valid"][name] for row in group])
            cells.append(f"{values.mean():.1f}" + (f" ± {np.ptp(values) / 2:.1f}" if len(values) > 1 else ""))
        lines.append(f"| {arm} | {stage.replace('_', ' ')} | {step} | {' | '.join(cells)} |")
    return "\n".join(lines)


def bits_table(rows: list[dict[str, Any]]) -> str:
    """Return the bits per code of the last checkpoint of each stage, by quarter of the image."""
    quarters = np.split(np.arange(CODES_PER_IMAGE), 4)
    head = " | ".join(f"codes {quarter[0] + 1} to {quarter[-1] + 1}" for quarter in quarters)
    lines = [f"| codes | model | step | first code | {head} | all |", "|---|---|---:|" + "---:|" * 6]
    groups = _grouped(rows)
    last = {(arm, stage): step for arm, stage, step in groups}
    for (arm, stage, step), group in groups.items():
        if last[arm, stage] != step:
            continue
        bits = np.array([row["bits"] for row in group]).mean(0)
        cells = [f"{value:.2f}" for value in (bits[0], *(bits[quarter].mean() for quarter in quarters), bits.mean())]
        lines.append(f"| {arm} | {stage.replace('_', ' ')} | {step} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _grouped(rows: list[dict[str, Any]]) -> dict[tuple[str, str, int], list[dict[str, Any]]]:
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["arm"], row["stage"], row["step"]), []).append(row)
    return groups


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw bits per code by position, and the share of valid images along pre-training."""
    try:
        import matplotlib as mpl
    except ImportError:
        logging.info("Without matplotlib there is no figure.")
        return
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True)
    stage = f"pretrain_{TUNED}" if any(row["stage"] == f"pretrain_{TUNED}" for row in rows) else rows[0]["stage"]
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm and row["stage"] == stage]
        if not own:
            continue
        last = max(row["step"] for row in own)
        bits = np.mean([row["bits"] for row in own if row["step"] == last], 0)
        left.plot(range(1, CODES_PER_IMAGE + 1), bits, marker=".", label=arm)
        steps = sorted({row["step"] for row in own})
        valid = [100 * np.mean([row["valid"]["t 1.0"] for row in own if row["step"] == step]) for step in steps]
        right.plot(steps, valid, marker="o", label=arm)
    left.set(xlabel="position of the code", ylabel="bits per code")
    right.set(xlabel="step of pre-training", ylabel="valid images, %, temperature 1.0", ylim=(0, 102))
    left.legend(frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()

"""Ablations of the paper's design choices on the synthetic world, where everything can be measured.

    python benchmarks/ablations.py --workdir DIR [--seeds 1 2 3] [--arms causal bilateral] [--free 5000]
    python benchmarks/ablations.py --workdir DIR --short

Every arm is the quickstart with one change; finished arms are not run again. `--short` runs every step of every arm
once and measures next to nothing. Prints a Markdown table with mean and spread over the seeds, and writes
DIR/ablations.json. The "free" figures are without the grammar that enforces images of exactly 32 codes.
"""

import argparse
import json
import logging
import shutil
import sys
from pathlib import Path

import ml_collections
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from configs import quickstart
from seed_jax.files import write_json
from seed_jax.recipes.quickstart import recipe
from seed_jax.recipes.recipe import TIMES

_LORA = {"stages.pretrain.model.train": "lora"}
# Arm -> options that differ from the quickstart. There is no pretrained language model: LoRA adapts random weights,
# and trains embeddings, head and norms in full, as the original does. 16 and 8 codes end at the decoder.
ARMS = {
    "causal": {},
    "bilateral": {"tokenizer.causal": False},
    "no contrastive stage": {"tokenizer.contrastive": False},
    "16 codes": {"tokenizer.codes_per_image": 16},
    "8 codes": {"tokenizer.codes_per_image": 8},
    "LoRA": {**_LORA, "stages.sft.model.train": "lora"},
    "LoRA then full": _LORA,
}
_LANGUAGE_STAGES = ("pretrain", "sft")
METRICS = (
    "rebuilt_attributes",
    "caption_held_out_attributes",
    "answer_held_out_all",
    "drawn_attributes",
    "edited_attributes",
    "free_images_whole",
    "free_attributes",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="one directory per arm and seed is made in it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--free", type=int, default=5000, help="captions to generate images from without the grammar")
    parser.add_argument("--teacher", default="", help="directory of another teacher; with 32 codes only")
    parser.add_argument("--short", action="store_true", help="run every step once")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    results = {arm: [run_arm(arm, seed, args) for seed in args.seeds] for arm in args.arms}
    write_json(args.workdir / "ablations.json", results)
    print(format_table(results))


def run_arm(arm: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Run an arm with a seed, or resume it, and return its results."""
    workdir = args.workdir / f"{arm.replace(' ', '_')}_{seed}"
    logging.info("%s, seed %d: %s", arm, seed, workdir)
    baseline = args.workdir / f"causal_{seed}"
    if changes_language_model_only(arm) and not workdir.exists() and (baseline / "results.json").is_file():
        _copy_tokenizer_steps(baseline, workdir)
    recipe.run(arm_config(arm, seed, args), workdir)
    return json.loads((workdir / "results.json").read_text(encoding="utf-8"))


def changes_language_model_only(arm: str) -> bool:
    """Whether an arm equals the first one until the language model."""
    prefixes = tuple(f"stages.{name}." for name in _LANGUAGE_STAGES)
    return bool(ARMS[arm]) and all(key.startswith(prefixes) for key in ARMS[arm])


def _copy_tokenizer_steps(baseline: Path, workdir: Path) -> None:
    """Start an arm with the steps before the language model of a finished run."""
    for directory in baseline.iterdir():
        if directory.is_dir() and directory.name not in _LANGUAGE_STAGES:
            shutil.copytree(directory, workdir / directory.name)
    times = json.loads((baseline / TIMES).read_text(encoding="utf-8"))
    remaining = (*_LANGUAGE_STAGES, "evaluate")
    write_json(workdir / TIMES, {name: seconds for name, seconds in times.items() if name not in remaining})


def arm_config(arm: str, seed: int, args: argparse.Namespace) -> ml_collections.ConfigDict:
    """Return the quickstart's config with the changes of an arm."""
    config = quickstart.get_config("shortest" if args.short else "world")
    config.update_from_flattened_dict(ARMS[arm])
    config.seed, config.teacher = seed, args.teacher
    if not args.short:
        config.evaluate.free = args.free
    return config


def format_table(results: dict[str, list[dict[str, float]]]) -> str:
    """Return mean and spread (half of largest minus smallest) of every metric in percent, as Markdown."""
    lines = [f"| arm | {' | '.join(name.replace('_', ' ') for name in METRICS)} |", f"|---|{'---:|' * len(METRICS)}"]
    for arm, runs in results.items():
        cells = []
        for name in METRICS:
            values = 100 * np.array([run[name] for run in runs if name in run])
            spread = f" ± {np.ptp(values) / 2:.1f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.1f}{spread}" if len(values) else "")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

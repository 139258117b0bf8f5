"""The paper's questions, asked of the drawn world: what each choice is worth where everything can be measured.

    python benchmarks/ablations.py --workdir DIR [--seeds 1 2 3] [--arms causal bilateral] [--free 5000]
    python benchmarks/ablations.py --workdir DIR --short

Every arm is the quickstart with one thing changed; an arm that was finished is not run again. `--short` runs every part
of every arm once and measures next to nothing. Prints a table in Markdown, mean and spread over the seeds, and writes
DIR/ablations.json. "free" figures are without the grammar that makes an image of exactly 32 codes.
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
from seed_jax.quickstart import recipe

_LORA = {"stages.pretrain.model.train": "lora"}
# Name -> what differs from the quickstart. There is no pretrained language model here: LoRA adapts random weights, and
# trains embeddings, head and norms whole, as the original does. 16 and 8 codes end at the decoder.
ARMS = {
    "causal": {},
    "bilateral": {"tokenizer.causal": False},
    "no contrastive stage": {"tokenizer.contrastive": False},
    "16 codes": {"tokenizer.codes": 16},
    "8 codes": {"tokenizer.codes": 8},
    "LoRA": {**_LORA, "stages.sft.model.train": "lora"},
    "LoRA then full": _LORA,
}
_LANGUAGE = ("pretrain", "sft")  # the stages of the language model
FIGURES = (
    "rebuilt_attributes",
    "caption_held_attributes",
    "answer_held_all",
    "drawn_attributes",
    "edited_attributes",
    "free_images_whole",
    "free_attributes",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--free", type=int, default=5000, help="captions that are drawn without the grammar")
    parser.add_argument("--teacher", default="", help="folder of another teacher; 32 codes only")
    parser.add_argument("--short", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    found = {arm: [measured(arm, seed, args) for seed in args.seeds] for arm in args.arms}
    write_json(args.workdir / "ablations.json", found)
    print(table(found))


def measured(arm: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Run one arm with one seed, or go on with it, and return its figures."""
    workdir = args.workdir / f"{arm.replace(' ', '_')}_{seed}"
    logging.info("%s, seed %d: %s", arm, seed, workdir)
    first = args.workdir / f"causal_{seed}"
    if _differs_late(arm) and not workdir.exists() and (first / "results.json").is_file():
        _begin_as(first, workdir)
    recipe.run(settings(arm, seed, args), workdir)
    return json.loads((workdir / "results.json").read_text(encoding="utf-8"))


def _differs_late(arm: str) -> bool:
    """Whether an arm differs from the first one in the language model only."""
    return bool(ARMS[arm]) and all(key.startswith(tuple(f"stages.{name}." for name in _LANGUAGE)) for key in ARMS[arm])


def _begin_as(first: Path, workdir: Path) -> None:
    """Copy what comes before the language model from a finished run."""
    times = json.loads((first / recipe.TIMES).read_text(encoding="utf-8"))
    for folder in first.iterdir():
        if folder.is_dir() and folder.name not in _LANGUAGE:
            shutil.copytree(folder, workdir / folder.name)
    later = (*_LANGUAGE, "evaluate")
    write_json(workdir / recipe.TIMES, {name: seconds for name, seconds in times.items() if name not in later})


def settings(arm: str, seed: int, args: argparse.Namespace) -> ml_collections.ConfigDict:
    """Return the quickstart's config with what the arm changes."""
    config = quickstart.get_config("shortest" if args.short else "world")
    config.update_from_flattened_dict(ARMS[arm])
    config.seed, config.teacher = seed, args.teacher
    if not args.short:
        config.evaluate.free = args.free
    return config


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Return mean and spread (largest minus smallest, halved) of every figure in per cent."""
    lines = [f"| arm | {' | '.join(name.replace('_', ' ') for name in FIGURES)} |", f"|---|{'---:|' * len(FIGURES)}"]
    for arm, runs in found.items():
        cells = []
        for name in FIGURES:
            values = 100 * np.array([run[name] for run in runs if name in run])
            spread = f" ± {np.ptp(values) / 2:.1f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.1f}{spread}" if len(values) else "")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

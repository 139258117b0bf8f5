"""Kill `train`, `data build`, `tokenize` and `generate --batch` at random moments, and compare with uninterrupted runs.

    python benchmarks/random_kills.py --kills 20 [--run DIR] [COMMAND ...]

Each command is killed (SIGKILL) and started again on what it left, until it was killed so many times; whenever it gets
to its end, what it wrote is compared with what an uninterrupted run wrote, and it begins anew. The model is that of a
short `pretrain:tiny` run, which `--run` may name.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRAINED = ("step", "loss", "loss_text", "loss_image", "grad_norm", "lr")


def trained(out: Path) -> object:
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [[row[key] for key in TRAINED] for row in rows], sorted(
        path.name for path in (out / "checkpoints").iterdir()
    )


def built(out: Path) -> object:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".array_record", ".jsonl")}


def tokenized(out: Path) -> object:
    return out.read_bytes()


def generated(out: Path) -> object:
    return (out / "answers.jsonl").read_bytes()


class Job:
    """A command, and what of its output must not depend on kills."""

    def __init__(self, name: str, words: list[str], result: Callable[[Path], object], folder: Path):
        self.name = name
        self._words = words
        self._result = result
        self._folder = folder / name.replace(" ", "_")
        self._folder.mkdir()

    def start(self, out: Path) -> subprocess.Popen:
        words = [word.replace("{out}", str(out)) for word in self._words]
        return subprocess.Popen(
            [sys.executable, "-m", *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def run(self, kills: int, rng: random.Random) -> int:
        """Print a line of the report and return how many runs ended with another result."""
        self._whole(self._folder / "cache")  # compiles
        began = time.monotonic()
        expected = self._whole(self._folder / "whole")
        duration = time.monotonic() - began
        done = wrong = finished = 0
        out = self._folder / "killed_0"
        while done < kills:
            process = self.start(out)
            try:
                process.wait(rng.uniform(0.1, duration))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                done += 1
                print(f"{self.name}: kill {done}", file=sys.stderr, flush=True)
                continue
            wrong += not self._is_right(process, out, expected)
            finished += 1
            out = self._folder / f"killed_{finished}"
        process = self.start(out)
        wrong += not self._is_right(process, out, expected)
        print(f"| {self.name} | {done} | {finished + 1} | {wrong} | {duration:.1f} s |", flush=True)
        return wrong

    def _is_right(self, process: subprocess.Popen, out: Path, expected: object) -> bool:
        output = process.communicate()[1]
        right = process.returncode == 0 and self._result(out) == expected
        if not right:
            print(f"{self.name}: exit code {process.returncode}, {output[-2000:]}", file=sys.stderr, flush=True)
        return right

    def _whole(self, out: Path) -> object:
        process = self.start(out)
        output = process.communicate()[1]
        if process.returncode:
            raise SystemExit(f"{self.name} failed: {output[-2000:]}")
        return self._result(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=Path, help="a finished run of pretrain:tiny")
    parser.add_argument("commands", nargs="*", default=["train", "data build", "tokenize", "generate"])
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="random_kills_"))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    run = args.run
    if run is None:
        run = folder / "run"
        command = [sys.executable, "-m", "seed_jax.main", "--config=pretrain:tiny", f"--workdir={run}"]
        subprocess.run([*command, "--config.steps=4"], cwd=ROOT, check=True)
    demo = run / "demo"
    tokenizer = str(next(path.parent for path in demo.glob("*/config.json")))
    prompts = folder / "prompts.jsonl"
    lines = [{"prompt": f"a photo of {number}", "max_new_tokens": 8} for number in range(24)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    mixture = f"({{'path':'{demo}/shards/captions','task':'image_text_pair','weight':1.0}},)"
    sizes = ["--config.steps=40", "--config.data.sequence_length=128", "--config.data.batch_size=4"]
    often = ["--config.log_every=1", "--config.checkpoint.every_steps=4", "--config.data.demo=False"]
    data = [f"--config.data.vocabulary={demo}/vocabulary", f"--config.data.mixture={mixture}"]
    build = ["data", "build", "--source", "captions", "--from", f"{demo}/images/captions.jsonl", "--model", tokenizer]
    jobs = {
        "train": (["seed_jax.main", "--config=pretrain:tiny", "--workdir={out}", *sizes, *often, *data], trained),
        "data build": (["seed_jax.cli", *build, "--shard-size", "8", "--out", "{out}"], built),
        "tokenize": (
            ["seed_jax.cli", "tokenize", "--model", tokenizer, "--batch-size", "2", "--out", "{out}", f"{demo}/images"],
            tokenized,
        ),
        "generate": (
            ["seed_jax.cli", "generate", "--model", str(run), "--batch", str(prompts), "--batch-size=2", "--out={out}"],
            generated,
        ),
    }
    print("| command | kills | runs compared | wrong | uninterrupted run |\n|---|---|---|---|---|", flush=True)
    wrong = sum(Job(name, *jobs[name], folder).run(args.kills, random.Random(args.seed)) for name in args.commands)
    shutil.rmtree(folder)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

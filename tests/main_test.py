"""The main job as a user meets it: one command, killed and started again, and what bad input looks like."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.support import xla_flags
from tests.support.pages import command_lines

ROOT = Path(__file__).parents[1]
STEPS = 24


def command(workdir: Path, *overrides: str) -> list[str]:
    tiny = ["--config=configs/pretrain.py:tiny", f"--workdir={workdir}", f"--config.steps={STEPS}"]
    often = ["--config.log_every=1", "--config.checkpoint.every_steps=4"]
    return [sys.executable, "-m", "seed_jax.main", *tiny, *often, *overrides]


def environment(devices: int = 1) -> dict[str, str]:
    return {**os.environ, "XLA_FLAGS": xla_flags.flags(devices)}


def run(workdir: Path, *overrides: str, devices: int = 1) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(workdir, *overrides), cwd=ROOT, env=environment(devices), capture_output=True, text=True, check=False
    )


def rows(workdir: Path) -> list[dict]:
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def results(workdir: Path) -> list[tuple]:
    """Return what a number-by-number comparison compares: step, losses, tokens of the batch, gradient norm."""
    return [
        tuple(row[key] for key in ("step", "loss", "loss_text", "loss_image", "tokens", "grad_norm"))
        for row in rows(workdir)
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A run that was never stopped."""
    workdir = tmp_path_factory.mktemp("main") / "finished"
    done = run(workdir)
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir, done.stdout


def start_from(finished: Path, workdir: Path) -> None:
    """Give a new run the data set that the finished one has made, to save time."""
    workdir.mkdir()
    shutil.copytree(finished / "demo", workdir / "demo")


def wait_for_step(workdir: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not (found := rows_safely(workdir)) or found[-1]["step"] < step:
        assert process.poll() is None, "the run ended before it was stopped"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def rows_safely(workdir: Path) -> list[dict]:
    try:
        return rows(workdir)
    except json.JSONDecodeError:  # the last line is being written
        return []


def test_it_learns_and_shows_what(finished):
    workdir, printed = finished
    losses = [row["loss"] for row in rows(workdir)]
    # The full-length run falls much further; here it is only begun.
    assert losses[-1] < 0.5 * losses[0]
    assert printed.count("found:") == 3
    codes = printed.split("32 codes for the caption")[1].split("\n")[1].split()
    assert len(codes) == 32
    assert all(0 <= int(code) < 128 for code in codes)


def test_the_readme_starts_what_is_tested_here(finished, tmp_path):
    (quickstart,) = command_lines("README.md", "quickstart command")
    # tests/train/recipe_test.py runs its shortest form.
    assert quickstart.endswith("-m seed_jax.main --config=configs/quickstart.py --workdir=runs/quickstart")
    (main,) = command_lines("README.md", "main command")
    assert main.endswith("-m seed_jax.main --config=configs/pretrain.py:tiny --workdir=runs/tiny")
    for line in command_lines("README.md", "generate command"):
        words = shlex.split(line.replace("runs/tiny", str(finished[0])))
        assert words[0] == ".venv/bin/seed-jax"
        done = subprocess.run(
            [sys.executable, "-m", "seed_jax.cli", *words[1:]],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert ("[image]" in done.stdout) == ("--force-image" in words)


def test_the_evaluation_page_evaluates_the_tiny_model(finished, tmp_path):
    (line,) = command_lines("docs/evaluation.md", "eval command")
    words = shlex.split(line.replace("runs/tiny/eval", str(tmp_path / "eval")).replace("runs/tiny", str(finished[0])))
    assert words[0] == "seed-jax"
    command = [sys.executable, "-m", "seed_jax.cli", *words[1:]]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "CIDEr" in done.stdout
    assert (tmp_path / "eval/report.html").is_file()
    found = json.loads((tmp_path / "eval/results.json").read_text())["tasks"]["flickr_caption"]
    assert found["scored"] == 4


def test_killed_at_any_moment_it_continues_number_by_number(finished, tmp_path):
    workdir = tmp_path / "killed"
    start_from(finished[0], workdir)
    for step in (2, 7, 14):  # before the first checkpoint, and between later ones
        process = subprocess.Popen(command(workdir), cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL)
        wait_for_step(workdir, step, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert run(workdir).returncode == 0
    assert results(workdir) == results(finished[0])


def test_eight_devices_give_the_losses_of_one(finished, tmp_path):
    workdir = tmp_path / "eight"
    start_from(finished[0], workdir)
    done = run(workdir, "--config.mesh.fsdp=4", "--config.mesh.tensor=2", devices=8)
    assert done.returncode == 0, done.stderr[-3000:]
    one, eight = ([row["loss"] for row in rows(folder)] for folder in (finished[0], workdir))
    # 1e-5: float32 sums in another order; at this learning rate the loss falls from 6.3 to 1.4 in these steps.
    np.testing.assert_allclose(eight, one, atol=1e-5)


def test_sigterm_saves_and_exits_with_75(finished, tmp_path):
    workdir = tmp_path / "terminated"
    start_from(finished[0], workdir)
    process = subprocess.Popen(command(workdir), cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    wait_for_step(workdir, 6, process)
    process.send_signal(signal.SIGTERM)
    assert "run the same command again" in process.communicate(timeout=120)[1]
    assert process.returncode == 75
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert saved >= 6
    assert run(workdir).returncode == 0
    assert results(workdir) == results(finished[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=configs/pretrain.py:huge", "--workdir=w"], ["'huge'", "8b, 14b, tiny"]),
        (["--config=configs/pretrain.py:tiny", "--workdir=w", "--config.stepz=3"], ["--config.stepz", "steps"]),
        (
            ["--config=configs/pretrain.py:tiny", "--workdir=w", "--config.optimizer.peak=3"],
            ["--config.optimizer.peak"],
        ),
        (["--config=configs/pretrain.py:tiny", "--workdir=w", "--config.steps=many"], ["steps", "many"]),
        (["--config=configs/nowhere.py", "--workdir=w"], ["configs/nowhere.py"]),
        (["--config=configs/pretrain.py:tiny"], ["--workdir"]),
        (["--config=configs/pretrain.py:tiny", "--workdir=w", "--config.mesh.tensor=3"], ["tensor 3", "device"]),
        (["--config=configs/pretrain.py:8b", "--workdir=w"], ["pretrained/"]),
    ],
)
def test_bad_input_is_one_sentence_with_exit_code_2(tmp_path, arguments, words):
    arguments = [argument.replace("--workdir=w", f"--workdir={tmp_path / 'w'}") for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "seed_jax.main", *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    message = done.stderr.strip().splitlines()
    assert len(message) == 1, done.stderr
    assert all(word in message[0] for word in words)
    assert not list(tmp_path.rglob("checkpoints/*"))

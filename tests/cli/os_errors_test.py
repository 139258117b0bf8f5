"""Errors of the operating system give every command one sentence and exit code 2, and leave no temporary files."""

import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seed_jax import cli
from seed_jax.checkpoint import model_dir
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig, abstract_params
from tests.models.tokenizer.cases import random_like

COMMANDS = {
    "tokenize": "tokenize --model {model} --out {out} {images}",
    "data build": "data build --source folder --from {images} --out {out} --workers 1",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    sizes = SeedTokenizerConfig.tiny()
    model = model_dir.save(
        root / "model", "seed_tokenizer", {"sizes": sizes.to_dict()}, random_like(abstract_params(sizes))
    )
    (root / "images").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"images/{number}.png")
    (root / "images/captions.jsonl").write_text(
        "".join(f'{{"image": "{number}.png", "caption": "image {number}"}}\n' for number in range(3))
    )
    return {"model": model, "images": root / "images"}


def sentence(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("seed-jax: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("command", [pytest.param("tokenize", marks=pytest.mark.slow), "data build"])
def test_a_full_disk(inputs, tmp_path, capsys, command):
    """A limit on the size of files fails like a full disk: in the middle of a write."""
    words = COMMANDS[command].format(**inputs, out=tmp_path / "out").split()
    previous = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, previous[1]))
    try:
        code = cli.main(words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, previous)
        signal.signal(signal.SIGXFSZ, ignored)
    assert code == 2
    assert "File too large" in sentence(capsys)
    assert not [path for path in tmp_path.rglob("*") if "tmp" in path.name[1:]]
    assert cli.main(words) == 0  # with space the same command goes on


@pytest.mark.parametrize("command", ["tokenize", "data build"])
@pytest.mark.parametrize(
    ("out", "key_words"),
    [("{}/" + "n" * 300, "name too long"), ("/proc/seed_jax/out", "/proc/seed_jax"), ("{}/a_file/out", "a_file")],
    ids=["name too long", "read-only", "below a file"],
)
def test_a_place_that_cannot_be_written(inputs, tmp_path, capsys, command, out, key_words):
    (tmp_path / "a_file").write_text("content")
    assert cli.main(COMMANDS[command].format(**inputs, out=out.format(tmp_path)).split()) == 2
    assert key_words in sentence(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["a_file"]

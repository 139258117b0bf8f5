"""docs/data.md: every command in it runs, and it names every source."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from seed_jax.checkpoint import model_dir
from seed_jax.cli import main
from seed_jax.data.inspect import statistics
from seed_jax.data.shards.shards import open_shards
from seed_jax.data.sources import SOURCES
from seed_jax.data.text.vocabulary import train_small
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig, abstract_params
from tests.data.sources.samples import png, tar, write_images
from tests.models.tokenizer.cases import random_like
from tests.support.pages import blocks, command_lines

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/data.md").read_text(encoding="utf-8")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with what the page supposes to be there."""
    monkeypatch.chdir(tmp_path)
    config, captions = SeedTokenizerConfig.tiny(), [f"An image of colour {number}." for number in range(8)]
    write_images(tmp_path / "photos", {f"{number}.png": 30 * number for number in range(8)})
    lines = [{"image": f"{number}.png", "caption": caption} for number, caption in enumerate(captions)]
    (tmp_path / "photos/captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    questions = [{**line, "question": "Which colour?", "answer": str(number)} for number, line in enumerate(lines)]
    (tmp_path / "vqa.jsonl").write_text("\n".join(map(json.dumps, questions)))
    (tmp_path / "wikipedia.jsonl").write_text('{"title": "Colour", "text": "An image has a colour."}\n' * 5)
    members = {f"{number}.png": png(30 * number, (190, 200)) for number in range(8)}
    members |= {f"{number}.txt": caption.encode() for number, caption in enumerate(captions)}
    (tmp_path / "laion").mkdir()
    tar(tmp_path / "laion/00000.tar", dict(sorted(members.items())))
    parameters = random_like(abstract_params(config))
    model_dir.save(tmp_path / "models/seed_tokenizer", "seed_tokenizer", {"sizes": config.to_dict()}, parameters)
    train_small(captions, tmp_path / "models/vocabulary", vocab_size=300, num_codes=config.num_codes)
    return tmp_path


@pytest.mark.slow
def test_every_command_runs(place, capsys, monkeypatch):
    monkeypatch.setattr(statistics, "PACKED_ROWS", 2)
    (mixture,) = blocks("docs/data.md", "file mixture.py")
    (place / "mixture.py").write_text(mixture)
    assert sum("```bash" in line for line in PAGE.splitlines()) == len(blocks("docs/data.md", "commands"))
    for program, *words in map(shlex.split, command_lines("docs/data.md", "commands")):
        if program == "python":
            words = [sys.executable, str(ROOT / words[0]), *words[1:], "--seconds", "0.1", "--records", "60"]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            assert "token_utilization_padded" in done.stdout, done.stderr[-2000:]
        else:
            assert program == "seed-jax"
            assert main(words) == 0, capsys.readouterr().err
    expected = {"laion": 8, "by_hand": 8, "photos": 8, "vqa": 8, "wikipedia": 5}
    assert {path.name: len(open_shards(path)) for path in (place / "shards").iterdir()} == expected
    shards = [(place / "shards" / name / "shard-000000.array_record").read_bytes() for name in ("laion", "by_hand")]
    assert shards[0] == shards[1]
    for page in ("photos", "mixture", "laion"):
        assert (place / f"{page}.html").read_text().count('<article class="sample">') >= 8


def test_every_source_is_named():
    rows = PAGE.split("| kind | reads | options |")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", "".join(re.findall(r"\n\| ([^|]*)\|", rows)))) == set(SOURCES)

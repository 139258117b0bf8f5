"""`seed-jax chat` on a terminal that types by itself."""

import io
import json

import pytest
from PIL import Image

from seed_jax.cli import main
from seed_jax.inference.generation.segments import ImageSegment
from seed_jax.inference.seed_llama import SeedLlama
from tests.cli.generate_test import models  # noqa: F401


@pytest.fixture
def talk(models, monkeypatch, capsys):  # noqa: F811
    def run(*typed: str, flags=()) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in typed)))
        words = ["chat", "--model", models / "llama", "--max-new-tokens", "40", *flags]
        assert main([str(word) for word in words]) == 0
        return capsys.readouterr().out

    return run


def test_pictures_in_pictures_out_and_a_saved_conversation(models, talk, tmp_path, monkeypatch):  # noqa: F811
    def draw(model, segments, seed):  # `generate`'s tests draw in earnest
        return [Image.new("RGB", (8, 8)) for segment in segments if isinstance(segment, ImageSegment)]

    monkeypatch.setattr(SeedLlama, "draw", draw)
    saved = tmp_path / "said.json"
    typed = [f"/image {models / '0.png'}", "what?", "/draw a dog", f"/save {saved}", "/reset", f"/save {saved}.2"]
    output = talk(*typed, flags=("--decoder", models / "decoder", "--out", tmp_path))
    assert "[1 picture(s) go with your next words]" in output
    turns = json.loads(saved.read_text())
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
    assert [segment["type"] for segment in turns[0]["segments"]] == ["image", "text"]
    drawn = turns[3]["segments"][0]
    assert drawn["type"] == "image"
    pictures = sorted(tmp_path.glob("chat_*.png"))
    assert pictures
    assert all(f"[image] {path}" in output for path in pictures)
    assert json.loads((tmp_path / "said.json.2").read_text()) == []


def test_mistakes_are_answered_with_a_sentence_and_the_conversation_goes_on(talk):
    output = talk("/fly", "/image gone.png", "<image>", "/help", "hello", "/quit", "never read")
    assert "! Unknown command /fly" in output
    assert "! Cannot read gone.png" in output
    assert "! The prompt has 1 <image> placeholder(s) but 0 image(s)" in output
    assert output.count("you>") == 6

"""`seed-jax generate` from model directories on disk."""

import dataclasses
import json
import logging
import re

import jax
import numpy as np
import pytest
from flax.core import meta
from PIL import Image

from seed_jax.checkpoint import model_dir
from seed_jax.cli import main
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.inference.chat.prompts import USER, Turn, build_prompt, interleave
from seed_jax.inference.generation.generator import Generator
from seed_jax.inference.image_tokenizer import ImageTokenizer
from seed_jax.models.diffusion import UnclipConfig
from seed_jax.models.llama.model import Llama, LlamaConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig, abstract_params
from tests.models.diffusion.cases import random_decoder
from tests.models.tokenizer.cases import random_like
from tests.support import golden

TOKENIZER = SeedTokenizerConfig.tiny()
SIZES = dataclasses.replace(LlamaConfig.tiny(830), hidden_size=32, intermediate_size=48, max_length=256)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return a folder with the language model `llama`, its image tokenizer, and one with fewer codes."""
    root = tmp_path_factory.mktemp("models")
    few = dataclasses.replace(TOKENIZER, num_codes=100)
    for name, config in [("tokenizer", TOKENIZER), ("few", few)]:
        model_dir.save(root / name, "seed_tokenizer", {"sizes": config.to_dict()}, random_like(abstract_params(config)))
    params = meta.unbox(jax.jit(Llama(SIZES).init)(jax.random.key(0), jax.numpy.zeros((1, 2), int)))["params"]
    files = {file.name: file for file in golden.path("text_tokenizer/tokenizer").iterdir()}
    config = {"sizes": SIZES.to_dict(), "image_tokenizer": "../tokenizer"}
    model_dir.save(root / "llama", "llama", config, params, files=files)
    model_dir.save(root / "blind", "llama", {**config, "image_tokenizer": None}, params, files=files)
    unclip, weights = random_decoder(UnclipConfig.tiny(TOKENIZER.embedding_width))
    model_dir.save(root / "decoder", "unclip", {"sizes": unclip.config.to_dict()}, weights)
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
    return root


def run(models, *words, model="llama"):
    return main(["generate", "--model", str(models / model), *map(str, words)])


def test_text_and_pictures_in_segments_out(models, capsys):
    pictures = [models / "0.png", models / "1.png"]
    flags = [word for picture in pictures for word in ("--image", picture)]
    words = ["--prompt", "From <image> to <image>?", "--style", "vicuna", "--max-new-tokens", "70", "--force-image"]
    assert run(models, *flags, *words, "--json") == 0
    found = json.loads(capsys.readouterr().out)

    from seed_jax import images

    codes = ImageTokenizer.load(models / "tokenizer", batch_size=2).encode([images.load(path) for path in pictures])
    vocabulary = Vocabulary.load(models / "llama")
    prompt = build_prompt([Turn(USER, interleave("From <image> to <image>?", codes.tolist()))], "vicuna", vocabulary)
    (expected,) = Generator.load(models / "llama").generate([prompt], max_new_tokens=70, mode="image")
    assert found["ids"] == list(expected.ids)
    assert found["segments"] == [segment.to_dict() for segment in expected.segments]
    assert found["stopped"] == expected.stopped
    assert found["segments"][0]["type"] == "image"
    assert len(found["segments"][0]["codes"]) == 32


def test_plain_output_has_a_line_of_codes_for_an_image(models, capsys):
    assert run(models, "--prompt", "a dog", "--max-new-tokens", "34", "--force-image") == 0
    kind, *codes = capsys.readouterr().out.split()
    assert kind == "[image]"
    assert len(codes) == 32
    assert all(0 <= int(code) < 128 for code in codes)
    assert run(models, "--prompt", "a dog", "--max-new-tokens", "34", "--text-only") == 0
    assert "[image]" not in capsys.readouterr().out


def test_images_are_drawn_and_memory_is_planned(models, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)
    words = ["--prompt", "a dog", "--max-new-tokens", "72", "--images", "2", "--quantize", "int8", "--quantize-vit"]
    flags = ["int8", "--decoder", models / "decoder", "--out", tmp_path, "--json", "--seed", "5"]
    assert run(models, *words, *flags) == 0
    segments = [s for s in json.loads(capsys.readouterr().out)["segments"] if s["type"] == "image"]
    assert [segment["path"] for segment in segments] == [str(tmp_path / f"picture_{n}.png") for n in (1, 2)]
    assert all(Image.open(segment["path"]).size == (64, 64) for segment in segments)
    for part in ("language model", "keys and values", "image tokenizer", "decoder", "while drawing"):
        assert re.search(rf"{part} +\d+\.\d\d GiB", caplog.text)


def test_a_file_of_prompts_is_answered_and_gone_on_with(models, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)
    lines = [
        {"prompt": "a dog", "id": "x", "temperature": 1, "seed": 3},
        {"prompt": "<image> and?", "images": ["0.png"], "number_of_images": 1},
        {"prompt": "a cat", "mode": "none"},
    ]
    batch = models / "batch.jsonl"
    batch.write_text("\n".join(map(json.dumps, lines)))
    words = ["--batch", batch, "--out", tmp_path / "out", "--max-new-tokens", "40"]
    assert run(models, *words, "--batch-size", 2) == 0
    assert "Valid images without the grammar:" in caplog.text
    path = tmp_path / "out/answers.jsonl"
    whole = path.read_text()
    found = [json.loads(line) for line in whole.splitlines()]
    assert [(one["line"], one["id"]) for one in found] == [(1, "x"), (2, None), (3, None)]
    assert [s["type"] for s in found[1]["segments"]].count("image") == 1
    # Cut off in the middle of the second answer, it goes on from there, and the answers are the same.
    path.write_text(whole[: whole.index("\n") + 30])
    assert run(models, *words, "--batch-size", 2) == 0
    assert path.read_text() == whole
    assert run(models, *words, "--top-k", 3) == 2
    assert "(top_k changed): choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is not valid JSON"),
        ('{"prompt": 3}', 'line 1: expected an object with a "prompt" of text'),
        ('{"prompt": "x", "heat": 1}', "line 1: unknown setting 'heat'"),
        ('{"prompt": "<image>"}', "line 1: The prompt has 1 <image> placeholder(s) but 0 image(s)"),
        ('{"prompt": "x", "images": ["gone.png"]}', "gone.png does not exist"),
    ],
)
def test_bad_lines(models, tmp_path, capsys, line, message):
    (tmp_path / "batch.jsonl").write_text(line)
    assert run(models, "--batch", tmp_path / "batch.jsonl", "--out", tmp_path) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "model", "message"),
    [
        (["--prompt", "x", "--image", "0.png"], "blind", "names no image tokenizer: give one with --tokenizer"),
        (["--prompt", "x", "--image", "none.png"], "llama", "none.png"),
        (["--prompt", "x", "--image", "0.png", "--tokenizer", "few"], "llama", "has 100 codes but the vocabulary"),
        (["--prompt", "<image>"], "llama", "1 <image> placeholder(s) but 0 image(s)"),
        (["--prompt", "dog " * 300], "llama", "the model's context is 256 tokens"),
        (["--prompt", "x", "--force-image", "--max-new-tokens", "9"], "llama", "needs 34"),
        (["--prompt", "x", "--memory", "1MiB"], "llama", "GiB of memory but there are 0.00 GiB (language model 0.00"),
        (["--prompt", "x", "--memory", "much"], "llama", "'much' is no amount of memory"),
        (["--prompt", "x", "--decoder", "decoder"], "llama", "say with --out in which folder"),
        (["--prompt", "x"], "tokenizer", "holds a model of kind 'seed_tokenizer', expected 'llama'"),
        (["--prompt", "x"], "nowhere", "neither a model directory nor a training workdir"),
    ],
)
def test_bad_input_is_one_sentence(models, capsys, monkeypatch, words, model, message):
    monkeypatch.chdir(models)
    assert run(models, *words, model=model) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error

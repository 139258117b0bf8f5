"""`seed-jax generate` from model directories on disk."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax.core import meta
from PIL import Image

from seed_jax.checkpoint import model_dir
from seed_jax.cli import main
from seed_jax.data.vocab import Vocabulary
from seed_jax.inference.chat import USER, Turn, build_prompt, interleave
from seed_jax.inference.generate import Generator
from seed_jax.inference.image_tokenizer import ImageTokenizer
from seed_jax.models.llama import Llama, LlamaConfig
from seed_jax.models.seed_tokenizer import SeedTokenizerConfig, abstract_params
from tests import golden
from tests.models.tokenizer_cases import random_like

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


@pytest.mark.parametrize(
    ("words", "model", "message"),
    [
        (["--prompt", "x", "--image", "0.png"], "blind", "names no image tokenizer: give one with --tokenizer"),
        (["--prompt", "x", "--image", "none.png"], "llama", "none.png"),
        (["--prompt", "x", "--image", "0.png", "--tokenizer", "few"], "llama", "has 100 codes but the vocabulary"),
        (["--prompt", "<image>"], "llama", "1 <image> placeholder(s) but 0 image(s)"),
        (["--prompt", "dog " * 300], "llama", "the model's context is 256 tokens"),
        (["--prompt", "x", "--force-image", "--max-new-tokens", "9"], "llama", "needs 34"),
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

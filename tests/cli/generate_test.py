"""`seed-jax generate` from model directories on disk."""

import dataclasses
import json
import logging
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from seed_jax import images
from seed_jax.checkpoint import model_dir
from seed_jax.cli import generate_batch, generation_options, main
from seed_jax.convert.llama.key_table import abstract_params as abstract_llama_params
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.files import locked
from seed_jax.inference.chat.prompts import STYLES, USER, Message, build_prompt, interleave
from seed_jax.inference.generation.generator import Generator
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.generation.segments import ImageSegment
from seed_jax.inference.image_tokenizer import ImageTokenizer
from seed_jax.inference.seed_llama import SeedLlama
from seed_jax.models.diffusion import UnclipConfig
from seed_jax.models.llama.model import LlamaConfig
from seed_jax.models.nn.quantized import SCHEMES
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig, abstract_params
from tests.models.diffusion.cases import random_decoder
from tests.models.tokenizer.cases import random_like
from tests.support import golden, pages, philox

TOKENIZER = SeedTokenizerConfig.tiny()
SIZES = dataclasses.replace(LlamaConfig.tiny(830), hidden_size=32, intermediate_size=48, max_length=256)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return a directory of models.

    The language model `llama` names its image tokenizer, `named` also prompt style and decoder, `blind` nothing;
    `bundle` refers to all of them; `few` is an image tokenizer with fewer codes.
    """
    root = tmp_path_factory.mktemp("models")
    few = dataclasses.replace(TOKENIZER, num_codes=100)
    for name, config in [("tokenizer", TOKENIZER), ("few", few)]:
        model_dir.save(root / name, "seed_tokenizer", {"sizes": config.to_dict()}, random_like(abstract_params(config)))
    params = philox.params_like(abstract_llama_params(SIZES), seed=0, scale=0.02)
    files = {file.name: file for file in golden.path("text_tokenizer/tokenizer").iterdir()}
    config = {"sizes": SIZES.to_dict(), "image_tokenizer": "../tokenizer"}
    named = {**config, "prompt_style": "vicuna", "decoder": "../decoder"}
    for name, one in [("llama", config), ("blind", {**config, "image_tokenizer": None}), ("named", named)]:
        model_dir.save(root / name, "llama", one, params, files=files)
    unclip, weights = random_decoder(UnclipConfig.tiny(TOKENIZER.embedding_width))
    model_dir.save(root / "decoder", "unclip", {"sizes": unclip.config.to_dict()}, weights)
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
    bundle = {"language_model": "../blind", "image_tokenizer": "../tokenizer", "decoder": "../decoder"}
    model_dir.save(root / "bundle", "seed_llama", {**bundle, "prompt_style": "vicuna"}, None)
    return root


def run(models, *words, model="llama"):
    return main(["generate", "--model", str(models / model), *map(str, words)])


def test_text_and_images_in_segments_out(models, capsys):
    pictures = [models / "0.png", models / "1.png"]
    flags = [word for picture in pictures for word in ("--image", picture)]
    words = ["--prompt", "From <image> to <image>?", "--style", "vicuna", "--max-new-tokens", "70", "--force-image"]
    assert run(models, *flags, *words, "--json") == 0
    found = json.loads(capsys.readouterr().out)

    codes = ImageTokenizer.load(models / "tokenizer", batch_size=2).encode([images.load(path) for path in pictures])
    vocabulary = Vocabulary.load(models / "llama")
    prompt = build_prompt([Message(USER, interleave("From <image> to <image>?", codes.tolist()))], "vicuna", vocabulary)
    (expected,) = Generator.load(models / "llama").generate([prompt], max_new_tokens=70, mode="image")
    assert found["ids"] == list(expected.ids)
    assert found["segments"] == [segment.to_dict() for segment in expected.segments]
    assert found["finish_reason"] == expected.finish_reason
    assert found["segments"][0]["type"] == "image"
    assert len(found["segments"][0]["codes"]) == 32


def test_plain_output_has_a_line_of_codes_for_an_image(models, tmp_path, capsys):
    words = ["--prompt", "a dog", "--max-new-tokens", "34", "--force-image"]
    assert run(models, *words) == 0
    printed = capsys.readouterr().out
    kind, *codes = printed.split()
    assert kind == "[image]"
    assert len(codes) == 32
    assert all(0 <= int(code) < 128 for code in codes)
    assert run(models, "--prompt", "a dog", "--max-new-tokens", "34", "--text-only") == 0
    assert "[image]" not in capsys.readouterr().out
    # Parallel decoding prints the same.
    draft = tmp_path / "draft.json"
    draft.write_text(json.dumps({"draft_codes": list(range(32))}))
    assert run(models, *words, "--parallel-decoding", "--draft-codes", draft) == 0
    assert capsys.readouterr().out == printed
    draft.write_text(json.dumps({"draft_codes": [1]}))
    assert run(models, *words, "--parallel-decoding", "--draft-codes", draft) == 2
    assert "list of 32 codes" in capsys.readouterr().err


def test_images_are_drawn_and_memory_is_planned(models, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)
    words = [
        "--memory-plan",
        "--prompt",
        "a dog",
        "--max-new-tokens",
        "72",
        "--num-images",
        "2",
        "--quantize",
        "int8",
        "--quantize-vit",
    ]
    flags = ["int8", "--decoder", models / "decoder", "--out", tmp_path, "--json", "--seed", "5"]
    assert run(models, *words, *flags) == 0
    segments = [s for s in json.loads(capsys.readouterr().out)["segments"] if s["type"] == "image"]
    assert [segment["path"] for segment in segments] == [str(tmp_path / f"image_{n}.png") for n in (1, 2)]
    assert all(Image.open(segment["path"]).size == (64, 64) for segment in segments)
    for part in ("language model", "KV cache", "image tokenizer", "decoder", "temporary: drawing", "peak"):
        assert re.search(rf"{part} +\d+\.\d\d MiB", caplog.text)


def test_a_bundle_needs_no_further_option(models, tmp_path, capsys, caplog, monkeypatch):
    def draw(model, segments, seed):  # drawing itself is tested above
        assert model.drawer.config.embedding_width == TOKENIZER.embedding_width
        return [Image.new("RGB", (8, 8)) for segment in segments if isinstance(segment, ImageSegment)]

    monkeypatch.setattr(SeedLlama, "draw", draw)
    caplog.set_level(logging.INFO)
    words = ["--prompt", "What?", "--image", models / "0.png", "--max-new-tokens", "34", "--force-image", "--json"]
    assert run(models, *words, "--out", tmp_path, model="bundle") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["segments"][0].pop("path") == str(tmp_path / "image_1.png")
    assert "shown as codes" not in caplog.text
    assert "Memory plan" not in caplog.text
    explicit = ["--style", "vicuna", "--tokenizer", models / "tokenizer"]
    assert run(models, *words, *explicit, model="blind") == 0
    assert json.loads(capsys.readouterr().out) == answer
    assert run(models, *words, "--style", "base", model="bundle") == 0
    assert json.loads(capsys.readouterr().out)["ids"] != answer["ids"]


@pytest.mark.parametrize(
    ("options", "model", "hint"),
    [
        (["--force-image"], "llama", "--decoder DIR"),
        (["--force-image"], "named", "give --out DIR"),
        (["--text-only"], "llama", None),
    ],
)
def test_images_that_cannot_be_drawn_come_with_a_hint(models, caplog, options, model, hint):
    caplog.set_level(logging.INFO)
    assert run(models, "--prompt", "a dog", "--max-new-tokens", "34", *options, model=model) == 0
    assert (hint in caplog.text) if hint else ("shown as codes" not in caplog.text)
    assert "compiling" in caplog.text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_tokenizer": "../tokenizer"}, "has no 'language_model'"),
        ({"language_model": "../bundle"}, "kind 'seed_llama'"),
        ({"language_model": "../llama", "prompt_style": "alpaca"}, "Unknown prompt style 'alpaca'"),
        ({"language_model": "../llama", "decoder": 3}, "'decoder' is 3, expected a string or null"),
    ],
)
def test_bad_bundles(models, tmp_path, capsys, config, message):
    for name in ("bundle", "llama"):
        (tmp_path / name).symlink_to(models / name)
    model_dir.save(tmp_path / "wrong", "seed_llama", config, None)
    assert main(["generate", "--model", str(tmp_path / "wrong"), "--prompt", "x"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_help_is_grouped_and_needs_no_jax(command):
    program = f"""
import sys
from seed_jax.cli import main
try:
    main([{command!r}, "--help"])
except SystemExit:
    print("jax" in sys.modules, "numpy" in sys.modules)
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "False False"
    groups = [line for line in output.splitlines() if line in ("model:", "decoding:", "images:", "output:")]
    assert groups == ["model:", "decoding:", "images:", "output:"]


OPTION = re.compile(r"--[a-z][a-z-]*")


def test_the_page_names_only_options_that_exist(capsys):
    page = (pages.ROOT / "docs/generation.md").read_text(encoding="utf-8")
    known = {}
    for command in ("generate", "chat"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        known[command] = set(OPTION.findall(capsys.readouterr().out))
    of_benchmarks = {
        option for line in re.findall(r"benchmarks/\w+\.py[^`\n]*", page) for option in OPTION.findall(line)
    }
    assert set(OPTION.findall(page)) <= known["generate"] | known["chat"] | of_benchmarks
    lines = re.findall(r"^seed-jax (generate|chat) (.*)$", page, re.MULTILINE)
    assert len(lines) == 6
    for command, options in lines:
        assert set(OPTION.findall(options)) <= known[command]


def test_the_example_line_of_the_page_is_valid(tmp_path):
    page = (pages.ROOT / "docs/generation.md").read_text(encoding="utf-8")
    (line,) = re.findall(r'^\{"prompt".*\}$', page, re.MULTILINE)
    (tmp_path / "batch.jsonl").write_text(line)
    Image.new("RGB", (8, 8)).save(tmp_path / "cat.jpg")
    (record,) = generate_batch.read_records(tmp_path / "batch.jsonl", SamplingParams())
    assert record.params == SamplingParams(seed=3, temperature=0.7, num_images=0)


def test_choices_are_those_of_the_package():
    assert set(generation_options.PROMPT_STYLES) == set(STYLES)
    assert set(generation_options.QUANTIZATIONS) == set(SCHEMES)


def test_a_file_of_prompts_is_answered_and_gone_on_with(models, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)
    lines = [
        {"prompt": "a dog", "id": "x", "temperature": 1, "seed": 3},
        {"prompt": "<image> and?", "images": ["0.png"], "num_images": 1},
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


@pytest.mark.slow
def test_the_seed_reaches_the_drawing_and_earlier_images_stay(models, tmp_path, capsys):
    """Greedy answers have equal codes, so that only the seed of the drawing can make a difference."""
    words = ["--max-new-tokens", 34, "--force-image", "--decoder", models / "decoder"]
    drawn = []
    for seed in (5, 5, 6):
        assert run(models, "--prompt", "a dog", "--seed", seed, "--out", tmp_path / "one", "--json", *words) == 0
        (segment,) = json.loads(capsys.readouterr().out)["segments"]
        drawn.append(segment["path"])
    assert drawn == [str(tmp_path / f"one/image_{n}.png") for n in (1, 2, 3)]
    first, same, other = (np.asarray(Image.open(path)) for path in drawn)
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()

    lines = [{"prompt": "a dog", "seed": 6}, {"prompt": "a dog"}]
    (tmp_path / "batch.jsonl").write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "many"
    batch = ["--batch", tmp_path / "batch.jsonl", "--out", out, *words]
    assert run(models, *batch, "--seed", 5) == 0
    np.testing.assert_array_equal(np.asarray(Image.open(out / "000001_1.png")), other)
    np.testing.assert_array_equal(np.asarray(Image.open(out / "000002_1.png")), first)

    # The images of a run whose answers are gone are not overwritten by another run.
    (out / "answers.jsonl").unlink()
    before = (out / "000002_1.png").read_bytes()
    assert run(models, *batch, "--seed", 7) == 2
    assert "seed changed" in capsys.readouterr().err
    (out / "run.json").unlink()
    assert run(models, *batch, "--seed", 7) == 2
    assert "choose another --out" in capsys.readouterr().err
    assert (out / "000002_1.png").read_bytes() == before


SHORT = ("--max-new-tokens", 3, "--text-only")


@pytest.mark.parametrize(
    "line",
    ['{"prompt": "a\u2028b"}', '{"prompt": "a\x85b"}', '\ufeff{"prompt": "a"}', '{"prompt": "a", "images": []}\r\n\n'],
)
def test_json_lines_are_split_at_line_feeds_only(models, tmp_path, line):
    (tmp_path / "batch.jsonl").write_bytes(line.encode())
    assert run(models, "--batch", tmp_path / "batch.jsonl", "--out", tmp_path / "out", *SHORT) == 0
    assert len((tmp_path / "out/answers.jsonl").read_bytes().splitlines()) == 1


def test_half_surrogate_pairs_and_an_unlimited_top_k_are_answered(models, tmp_path):
    lines = ['{"prompt": "a", "id": 1}', '{"prompt": "a\\ud83d", "id": "\\ud83d"}', '{"prompt": "a", "id": "\u00e9"}']
    lines.append('{"prompt": "a", "temperature": 1, "top_k": 3000000000}')
    (tmp_path / "batch.jsonl").write_text("\n".join(lines), encoding="utf-8")
    words = ["--batch", tmp_path / "batch.jsonl", "--out", tmp_path / "out", "--batch-size", 2, *SHORT]
    assert run(models, *words) == 0
    answers = (tmp_path / "out/answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(answer)["id"] for answer in answers] == [1, "\ud83d", "\u00e9", None]
    assert "\u00e9" in answers[2]
    assert run(models, *words) == 0  # resumes: nothing is left to do


def test_a_batch_takes_one_path_for_a_list_and_the_negative_prompt_of_the_command(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "cat.png")
    lines = [{"prompt": "", "images": "cat.png"}, {"prompt": "", "negative_prompt": None}]
    (tmp_path / "batch.jsonl").write_text("\n".join(map(json.dumps, lines)))
    one, two = generate_batch.read_records(tmp_path / "batch.jsonl", SamplingParams(), "dog")
    assert one.images == (tmp_path / "cat.png",)
    assert (one.negative_prompt, two.negative_prompt) == ("dog", None)


@pytest.fixture
def answered(models, tmp_path):
    """Return the arguments of a batch that is answered."""
    (tmp_path / "batch.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}')
    words = ["--batch", tmp_path / "batch.jsonl", "--out", tmp_path / "out", *SHORT]
    assert run(models, *words) == 0
    return words


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, None])
def test_a_damaged_run_json_is_one_sentence(models, tmp_path, answered, capsys, content):
    path = tmp_path / "out/run.json"
    path.unlink() if content is None else path.write_bytes(content)
    answers = (tmp_path / "out/answers.jsonl").read_bytes()
    assert run(models, *answered) == 2
    error = capsys.readouterr().err
    assert "run.json" in error
    assert "choose another --out" in error
    assert (tmp_path / "out/answers.jsonl").read_bytes() == answers


@pytest.mark.parametrize("line", [b"{", b"", b"[]", b"3", b'{"line": "1"}', b'{"line": 9}', b"\xff", b"[" * 100_000])
def test_damaged_answers_are_one_sentence(models, tmp_path, answered, capsys, line):
    path = tmp_path / "out/answers.jsonl"
    path.write_bytes(line + b"\n" + path.read_bytes())
    damaged = path.read_bytes()
    assert run(models, *answered) == 2
    assert "answers.jsonl, line 1 is damaged" in capsys.readouterr().err
    assert path.read_bytes() == damaged


def test_two_processes_do_not_write_one_directory(models, tmp_path, capsys):
    (tmp_path / "batch.jsonl").write_text('{"prompt": "a"}')
    (tmp_path / "out").mkdir()
    words = ["--batch", tmp_path / "batch.jsonl", "--out", tmp_path / "out", *SHORT]
    with locked(tmp_path / "out" / generate_batch.LOCK, "out"):
        assert run(models, *words) == 2
    assert "is being written by process" in capsys.readouterr().err
    assert not (tmp_path / "out/answers.jsonl").exists()
    assert run(models, *words) == 0


@pytest.mark.parametrize(
    ("words", "warning"),
    [
        (["--negative-prompt", "dog"], "--negative-prompt has no effect without --guidance-scale"),
        (["--negative-prompt", "dog", "--guidance-scale", "2"], None),
        (["--top-p", "0.5"], "--top-p has no effect without --temperature"),
        (["--top-k", "3"], "--top-k has no effect without --temperature"),
        (["--top-p", "0.5", "--temperature", "1"], None),
        (["--length-penalty", "0"], "--length-penalty has no effect without --beams"),
        ([], None),
    ],
)
def test_options_without_effect_are_warned_of(models, tmp_path, caplog, words, warning):
    assert run(models, "--prompt", "a", *words, *SHORT) == 0
    assert (warning in caplog.text) if warning else ("has no effect" not in caplog.text)


def test_a_batch_warns_once_of_options_without_effect(models, tmp_path, caplog):
    (tmp_path / "batch.jsonl").write_text('{"prompt": "a", "temperature": 1}\n' + '{"prompt": "a"}\n' * 3)
    words = ["--batch", tmp_path / "batch.jsonl", "--out", tmp_path / "out", *SHORT]
    assert run(models, *words, "--top-p", "0.5", "--negative-prompt", "dog") == 0
    assert caplog.text.count("top_p has no effect") == 1
    assert "line 2" in caplog.text
    assert "negative_prompt has no effect" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "Andr\u00e9"}'.encode("latin-1"), "line 1 is not UTF-8"),
        ('{"prompt": "a"}'.encode("utf-16"), "line 1 is not UTF-8"),
        ('{"prompt": "a"}'.encode("utf-16-le"), "convert the file to UTF-8"),
        ('{"prompt": "a"}'.encode("utf-32"), "convert the file to UTF-8"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"prompt": "a", "top_k": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"prompt": "a", "temperature": 1' + b"0" * 400 + b"}", "temperature is"),
        (b'{"prompt": "a", "guidance_scale": 1e39}', "guidance_scale is 1e+39"),
        (b'{"prompt": "a", "image": "x.png"}', "unknown key 'image': the keys are id, images"),
    ],
)
def test_files_of_other_encodings_and_values_out_of_range_are_one_sentence(models, tmp_path, capsys, content, message):
    (tmp_path / "batch.jsonl").write_bytes(content)
    assert run(models, "--batch", tmp_path / "batch.jsonl", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is not valid JSON"),
        ('{"prompt": 3}', 'line 1: expected an object whose "prompt" is a string'),
        ('{"prompt": "x", "heat": 1}', "line 1: unknown key 'heat'"),
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
        (["--prompt", "x", "--force-image", "--max-new-tokens", "9"], "llama", "need 34"),
        (["--prompt", "x", "--memory", "1MiB"], "llama", "but 1.00 MiB are available (language model 0."),
        (["--prompt", "x", "--memory", "much"], "llama", "'much' is not a size"),
        (["--prompt", "x", "--decoder", "decoder"], "llama", "give their directory with --out"),
        (["--prompt", "x"], "tokenizer", "kind 'seed_tokenizer'"),
        (["--prompt", "x"], "nowhere", "neither a model directory nor a training workdir"),
    ],
)
def test_bad_input_is_one_sentence(models, capsys, monkeypatch, words, model, message):
    monkeypatch.chdir(models)
    assert run(models, *words, model=model) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error

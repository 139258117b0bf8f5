import argparse
import io
import json
import subprocess
import sys
from unittest import mock

import jax
import numpy as np
import pytest
from PIL import Image

from seed_jax import images
from seed_jax.checkpoint import model_dir
from seed_jax.cli import main
from seed_jax.cli.data import build, show
from seed_jax.data.batches.mixture_config import WEIGHT_BY
from seed_jax.data.shards.shards import open_shards
from seed_jax.data.sources import SOURCES
from seed_jax.data.text.vocabulary_files import train_small
from seed_jax.inference.drawing.drawer import Drawer
from seed_jax.inference.image_tokenizer import ImageTokenizer
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig, abstract_params
from tests.models.tokenizer.cases import random_like


def png(number):
    # Coarse noise: fine noise would average out in the resize and leave the same grey for all.
    pixels = np.random.default_rng(number).integers(0, 255, (4, 5, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((70, 60), 0).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "images")


def write_folder(directory):
    directory.mkdir()
    lines = [{"image": f"{number}.png", "caption": f"Image {number}."} for number in range(5)]
    for number in range(5):
        (directory / f"{number}.png").write_bytes(png(number))
    (directory / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return directory


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = SeedTokenizerConfig.tiny()
    directory = tmp_path_factory.mktemp("model") / "tokenizer"
    return model_dir.save(
        directory, "seed_tokenizer", {"sizes": config.to_dict()}, random_like(abstract_params(config))
    )


def run(*words):
    return main([*map(str, words)])


def test_images_become_the_tokenizers_codes(folder, model, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ("data", "build", "--source", "folder", "--from", folder, "--out", out, "--model", model)
    assert run(*arguments, "--batch-size", 2, "--shard-size", 3) == 0
    printed = capsys.readouterr().out
    assert "5 records of source folder" in printed
    assert "5 codes, 5 texts" in printed
    tokenizer = ImageTokenizer.load(model)
    shards = open_shards(out, tokenizer=tokenizer.fingerprint, verify=True)
    assert shards.manifest.preprocessing == {
        "image_size": tokenizer.config.image_size,
        "interpolation": "bilinear",
        "keep_ratio": False,
    }
    expected = tokenizer.encode([images.load(png(number)) for number in range(5)])
    assert len(np.unique(expected, axis=0)) == 5
    np.testing.assert_array_equal([record.items[0] for record in shards], expected)
    assert [record.items[1] for record in shards] == [f"Image {number}." for number in range(5)]
    assert jax.local_device_count() == 8  # so the batches of 2 were rounded up to one image a device


def test_show_prints_counts_and_samples(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("data", "build", "--source", "folder", "--from", folder, "--out", out) == 0
    capsys.readouterr()
    assert run("data", "show", out, "--first", 3, "--samples", 9, "--verify") == 0
    printed = capsys.readouterr().out
    assert "5 records of source folder" in printed
    assert "items: 5 images, 5 texts" in printed
    assert [line for line in printed.splitlines() if line.startswith("record")] == ["record 3", "record 4"]
    assert "id: captions.jsonl:4" in printed
    assert "image: 70 x 60" in printed
    assert "text: 'Image 3.'" in printed


def test_show_escapes_terminal_controls_in_the_data(folder, tmp_path, capsys):
    lines = [{"image": "0.png", "caption": "A red bus.", "title": "red\x1b[31m", "page": "\x9b2J\x07"}]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert run("data", "build", "--source", "folder", "--from", folder, "--out", tmp_path / "out") == 0
    assert run("data", "show", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "red\\x1b[31m" in printed
    assert not set("\x1b\x07\x9b") & set(printed)


def test_bad_records_are_counted_and_named(folder, tmp_path, capsys):
    (folder / "2.png").write_bytes(b"")
    out = tmp_path / "out"
    command = ("data", "build", "--source", "folder", "--from", folder, "--out", out)
    assert run(*command) == 2
    assert "1 of 5 input samples are unusable" in capsys.readouterr().err
    assert run(*command, "--max-bad", "20%") == 0
    assert "dropped: 1 (1 unreadable image)" in capsys.readouterr().out
    assert "captions.jsonl:3" in (out / "bad.jsonl").read_text()


def test_filters_and_their_counts(folder, tmp_path, capsys):
    command = ("data", "build", "--source", "folder", "--from", folder, "--out", tmp_path / "out")
    assert run(*command, "--min-size", 61, "--max-aspect", 1.1) == 0
    printed = capsys.readouterr().out
    assert "dropped: 5 (5 side shorter than 61 pixels)" in printed
    assert "filters: max_aspect=1.1, min_size=61" in printed


def test_sources_are_described(capsys):
    assert run("data", "sources") == 0
    printed = capsys.readouterr().out
    assert {line.partition(":")[0] for line in printed.splitlines() if line[0] != " "} == set(SOURCES)
    assert run("data", "sources", "videos") == 0
    printed = capsys.readouterr().out
    assert "each from the middle of an equal interval" in printed
    assert "options: --images --frames" in printed
    assert run("data", "sources", "zip") == 2
    assert "'zip' is not a kind of source" in capsys.readouterr().err


@pytest.fixture(scope="module")
def captions(model, tmp_path_factory):
    """Shards with codes of the tiny tokenizer, and a vocabulary for them."""
    root = tmp_path_factory.mktemp("captions")
    folder, out, vocabulary = write_folder(root / "images"), root / "captions", root / "vocabulary"
    assert run("data", "build", "--source", "folder", "--from", folder, "--out", out, "--model", model) == 0
    codes = SeedTokenizerConfig.tiny().num_codes
    train_small(["Image number one, two, three."], vocabulary, vocab_size=300, num_codes=codes)
    return out, vocabulary


def test_show_with_a_template_measures_and_writes_a_page(captions, tmp_path, capsys):
    out, vocabulary = captions
    page = tmp_path / "page.html"
    words = ("data", "show", out, "--vocabulary", vocabulary, "--task", "image_text_pair", "--html", page)
    assert run(*words, "--param", "max_length=128", "reverse_ratio=1.0", "--sequence-length", 256) == 0
    printed = capsys.readouterr().out
    assert "captions: 5 records for pretrain.image_text_pair; 100.0% of the samples" in printed
    assert "packed into rows of 256" in printed
    content = page.read_text()
    assert content.count('<article class="sample">') == 5
    assert "Image 4." in content
    assert content.count("image, 34 tokens") == 5


def test_show_reads_a_mixture(captions, tmp_path, capsys):
    out, vocabulary = captions
    mixture = tmp_path / "mixture.py"
    mixture.write_text(
        "def components(root='nowhere'):\n"
        "    entry = {'path': f'{root}/captions', 'task': 'image_text_pair', 'weight': 3}\n"
        "    return [entry, {**entry, 'weight': 1, 'task': 'sft.qa', 'question': 'What?', 'cycles': 1}]\n"
    )
    rows = ("--vocabulary", vocabulary, "--sequence-length", 256)
    assert run("data", "show", mixture, "--root", out.parent, *rows, "--samples", 4) == 0
    printed = capsys.readouterr().out
    assert "75.0% of the samples" in printed
    assert "25.0% of the samples" in printed
    shown = [line for line in printed.splitlines() if line.startswith("record ")]
    assert shown == ["record 0 of captions", "record 1 of captions"] * 2  # as many of each component
    assert run("data", "show", mixture, "--root", out.parent, "--samples", 1) == 0
    assert run("data", "show", mixture) == 2
    assert "nowhere/captions does not exist" in capsys.readouterr().err


def test_show_draws_codes_with_a_decoder(captions, model, tmp_path, monkeypatch):
    drawer = mock.create_autospec(Drawer, instance=True)  # the decoder itself is tested elsewhere, and takes a while
    drawer.draw.side_effect = lambda embeddings, *_: np.zeros((len(embeddings), 8, 8, 3), np.uint8)
    monkeypatch.setattr(Drawer, "load", lambda directory: drawer)
    words = ("--model", model, "--unclip", "decoder", "--steps", 1, "--samples", 2)
    assert run("data", "show", captions[0], "--html", tmp_path / "page.html", *words) == 0
    assert (tmp_path / "page.html").read_text().count("data:image/jpeg") == 2
    embeddings, seeds, options = drawer.draw.call_args.args
    assert embeddings.shape == (1, SeedTokenizerConfig.tiny().embedding_width)
    assert (list(seeds), options.steps) == ([0], 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--task", "image_text_pair"), "Give --vocabulary and --task together"),
        (("--unclip", "d", "--html", "p"), "Give --model and --unclip together"),
        (("--samples", "-1"), "expected records from 0 to 4"),
        (("--records", "0"), "--records must be at least 1"),
        (("gone.py",), "either shard directories or one mixture"),
    ],
)
def test_show_bad_options(captions, capsys, words, message):
    assert run("data", "show", captions[0], *words) == 2
    assert message in capsys.readouterr().err


def test_choices_of_options_are_those_of_the_library():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    build.add_parser(commands)
    show.add_parser(commands)
    required = ["--source", "folder", "--from", "x", "--out", "y"]
    for name in images.INTERPOLATIONS:
        assert parser.parse_args(["build", *required, "--interpolation", name]).interpolation == name
    for unit in WEIGHT_BY:
        assert parser.parse_args(["show", "x", "--weight-by", unit]).weight_by == unit


@pytest.mark.parametrize("command", ["build", "show", "sources"])
def test_help_does_not_import_heavy_packages(command):
    program = (
        "import sys\n"
        "from seed_jax.cli import main\n"
        "try:\n"
        f"    main(['data', {command!r}, '--help'])\n"
        "except SystemExit:\n"
        "    heavy = {'jax', 'numpy', 'grain', 'pyarrow', 'PIL', 'tensorflow_datasets', 'av', 'msgpack'}\n"
        "    print('imported', sorted(heavy & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported []"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--images": "x"}, "'folder' has no --images: it takes no options"),
        ({"--max-aspect": "0.5"}, "--max-aspect 0.5 must be at least 1"),
        ({"--source": "zip"}, "'zip' is not a kind of source: expected one of captions, coco"),
        ({"--from": "gone"}, "gone does not exist"),
        ({"--max-bad": "lots"}, "--max-bad 'lots' is not a limit"),
        ({"--share": "4/4"}, "Share 4 of 4 does not exist"),
        ({"--share": "half"}, "--share 'half' is not a share"),
        ({"--workers": "0"}, "workers 0 must be at least 1"),
        ({"--model": "gone"}, "gone is neither a model directory"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(folder, tmp_path, capsys, changes, message):
    arguments = {"--source": "folder", "--from": folder, "--out": tmp_path / "out"} | changes
    assert run("data", "build", *(word for pair in arguments.items() for word in pair)) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_show_bad_input(tmp_path, folder, capsys):
    assert run("data", "show", tmp_path / "gone") == 2
    assert "gone does not exist" in capsys.readouterr().err
    assert run("data", "build", "--source", "folder", "--from", folder, "--out", tmp_path / "out") == 0
    assert run("data", "show", tmp_path / "out", "--first", 5) == 2
    assert "records from 0 to 4" in capsys.readouterr().err

import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

from seed_jax import images
from seed_jax.checkpoint import model_dir
from seed_jax.cli import main
from seed_jax.data.shards import open_shards
from seed_jax.inference.image_tokenizer import ImageTokenizer
from seed_jax.models.seed_tokenizer import SeedTokenizerConfig, abstract_params
from tests.models.tokenizer_cases import random_like


def png(number):
    # Coarse noise: fine noise would average out in the resize and leave the same grey for all.
    pixels = np.random.default_rng(number).integers(0, 255, (4, 5, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((70, 60), 0).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    directory = tmp_path / "pictures"
    directory.mkdir()
    lines = [{"image": f"{number}.png", "caption": f"Picture {number}."} for number in range(5)]
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


def test_pictures_become_the_tokenizers_codes(folder, model, tmp_path, capsys):
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
    assert [record.items[1] for record in shards] == [f"Picture {number}." for number in range(5)]
    assert jax.local_device_count() == 8  # so the batches of 2 were rounded up to one picture a device


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
    assert "text: 'Picture 3.'" in printed


def test_bad_records_are_counted_and_named(folder, tmp_path, capsys):
    (folder / "2.png").write_bytes(b"")
    out = tmp_path / "out"
    build = ("data", "build", "--source", "folder", "--from", folder, "--out", out)
    assert run(*build) == 2
    assert "1 of 5 records are bad" in capsys.readouterr().err
    assert run(*build, "--max-bad", "20%") == 0
    assert "left out: 1 (1 unreadable picture)" in capsys.readouterr().out
    assert "captions.jsonl:3" in (out / "bad.jsonl").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--source": "zip"}, "no source of kind 'zip'; there are captions, coco"),
        ({"--from": "gone"}, "gone does not exist"),
        ({"--max-bad": "lots"}, "--max-bad 'lots' is no limit"),
        ({"--share": "4/4"}, "Share 4 of 4 does not exist"),
        ({"--share": "half"}, "--share 'half' is no share"),
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
    assert "gone has no manifest.json; it is missing" in capsys.readouterr().err
    assert run("data", "build", "--source", "folder", "--from", folder, "--out", tmp_path / "out") == 0
    assert run("data", "show", tmp_path / "out", "--first", 5) == 2
    assert "records 0 to 4" in capsys.readouterr().err

import json
import logging

import numpy as np
import pytest
from PIL import Image

from seed_jax import cli, images
from seed_jax.checkpoint import model_dir
from seed_jax.cli import tokenizer_options
from seed_jax.files import locked
from seed_jax.inference.image_tokenizer import PRECISIONS, ImageTokenizer, default_precision
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig, abstract_params
from tests.models.tokenizer.cases import random_like

CONFIG = SeedTokenizerConfig.tiny()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model") / "tokenizer"
    return str(
        model_dir.save(directory, "seed_tokenizer", {"sizes": CONFIG.to_dict()}, random_like(abstract_params(CONFIG)))
    )


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    (folder / "deeper").mkdir(parents=True)
    for name in ("a.png", "b.JPG", "deeper/c.webp"):
        Image.fromarray(rng.integers(0, 255, (4, 5, 3), np.uint8)).resize((70, 60), 0).convert("RGB").save(
            folder / name
        )
    (folder / "notes.txt").write_text("no image")
    return folder


def tokenize(model, folder, *options) -> tuple[int, object]:
    out = folder.parent / "codes.jsonl"
    return cli.main(["tokenize", "--model", model, "--out", str(out), "--batch-size", "2", *options, str(folder)]), out


def lines(out) -> list[dict]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_walks_folders_and_writes_one_line_per_image(model, folder):
    code, out = tokenize(model, folder, str(folder / "a.png"))
    assert code == 0
    paths = [str(folder / name) for name in ("a.png", "b.JPG", "deeper/c.webp")]
    assert [line["path"] for line in lines(out)] == paths  # one was given twice
    expected = [encoded.codes.tolist() for encoded in ImageTokenizer.load(model).encode_stream((p, p) for p in paths)]
    assert [line["codes"] for line in lines(out)] == expected
    assert len(expected[0]) == 32


def test_resumes_after_an_interruption(model, folder, monkeypatch, caplog):
    _, out = tokenize(model, folder)
    whole = out.read_bytes()
    out.write_bytes(whole[: whole.index(b"\n") + 30])  # killed in the middle of the second line
    seen = []
    stream = ImageTokenizer.encode_stream

    def spied(self, items, **options):
        items = list(items)
        seen.extend(key for key, _ in items)
        return stream(self, items, **options)

    monkeypatch.setattr(ImageTokenizer, "encode_stream", spied)
    assert tokenize(model, folder)[0] == 0
    assert out.read_bytes() == whole
    assert seen == [str(folder / "b.JPG"), str(folder / "deeper/c.webp")]
    caplog.set_level(logging.INFO)
    assert tokenize(model, folder)[0] == 0
    assert out.read_bytes() == whole
    assert "Encoded 0 images" in caplog.text
    assert "3 were there already" in caplog.text


def test_another_tokenizers_file_is_refused(model, folder, capsys):
    _, out = tokenize(model, folder)
    before = out.read_bytes()
    assert tokenize(model, folder, "--interpolation", "bicubic")[0] == 2
    assert f"{out} was written by another tokenizer" in capsys.readouterr().err
    out.with_name("codes.jsonl.tokenizer.json").unlink()
    assert tokenize(model, folder)[0] == 2
    assert "does not name the tokenizer" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_another_precision_is_refused(model, folder, capsys):
    _, out = tokenize(model, folder)  # float32 on a CPU
    before, sidecar = out.read_bytes(), out.with_name("codes.jsonl.tokenizer.json")
    assert json.loads(sidecar.read_text())["precision"] == "float32"
    for precision in ("bfloat16", "bfloat16_3x"):
        assert tokenize(model, folder, "--precision", precision)[0] == 2
        assert f"with --precision float32, now it is {precision}" in capsys.readouterr().err
    assert out.read_bytes() == before
    # Files of earlier versions do not name their precision.
    sidecar.write_text(json.dumps({"fingerprint": json.loads(sidecar.read_text())["fingerprint"]}))
    assert tokenize(model, folder)[0] == 0


def test_damaged_line_is_named(model, folder, capsys):
    _, out = tokenize(model, folder)
    out.write_text("not json\n" + out.read_text())
    assert tokenize(model, folder)[0] == 2
    assert f"{out} line 1 is not a JSON object" in capsys.readouterr().err


def test_unreadable_image_stops_or_is_skipped(model, folder, capsys, caplog):
    (folder / "a.png").write_bytes(b"")
    code, out = tokenize(model, folder)
    assert code == 2
    error = capsys.readouterr().err
    assert f"Cannot read {folder / 'a.png'}: the file is empty" in error
    assert "--skip-bad" in error
    caplog.set_level(logging.INFO)
    assert tokenize(model, folder, "--skip-bad")[0] == 0
    assert [line["path"] for line in lines(out)] == [str(folder / "b.JPG"), str(folder / "deeper/c.webp")]
    assert "Encoded 2 images" in caplog.text
    assert "1 are unreadable" in caplog.text


def test_links_are_followed_and_hidden_files_skipped(model, folder):
    (folder / "deeper/parent").symlink_to(folder)
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    Image.new("RGB", (8, 8), "red").save(elsewhere / "d.jfif", format="JPEG")
    (folder / "linked").symlink_to(elsewhere)
    (folder / ".thumbnails").mkdir()
    Image.new("RGB", (8, 8)).save(folder / ".thumbnails/a.png")
    (folder / "._a.png").write_bytes(b"metadata of another file system")
    code, out = tokenize(model, folder)
    assert code == 0
    names = ("a.png", "b.JPG", "deeper/c.webp", "linked/d.jfif")
    assert [line["path"] for line in lines(out)] == [str(folder / name) for name in names]


def test_two_processes_do_not_share_a_file(model, folder, capsys):
    out = folder.parent / "codes.jsonl"
    with locked(out.with_name(".codes.jsonl.lock"), "codes.jsonl"):
        assert tokenize(model, folder)[0] == 2
    assert "is being written by process" in capsys.readouterr().err
    assert not out.exists()
    assert tokenize(model, folder)[0] == 0


def test_choices_are_those_of_the_library():
    assert set(tokenizer_options.INTERPOLATIONS) == set(images.INTERPOLATIONS)
    assert tokenizer_options.PRECISIONS == PRECISIONS
    assert (default_precision("cpu"), default_precision("tpu")) == ("float32", "bfloat16_3x")


def test_missing_inputs(model, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert tokenize(model, tmp_path / "empty")[0] == 2
    assert "holds no images" in capsys.readouterr().err
    assert tokenize(model, tmp_path / "absent")[0] == 2
    assert f"{tmp_path / 'absent'} does not exist" in capsys.readouterr().err
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    out = tmp_path / "no" / "codes.jsonl"
    assert cli.main(["tokenize", "--model", model, "--out", str(out), str(tmp_path / "x.png")]) == 2
    assert f"create {out.parent}" in capsys.readouterr().err

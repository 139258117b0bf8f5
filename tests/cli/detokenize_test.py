import argparse
import json

import numpy as np
import pytest
from PIL import Image

from seed_jax.checkpoint import model_dir
from seed_jax.cli import detokenize
from seed_jax.errors import UserError
from seed_jax.inference.contact_sheet import GAP, contact_sheet
from seed_jax.models.diffusion import UnclipConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig, abstract_params
from tests.models.diffusion.cases import random_decoder
from tests.models.tokenizer import cases

TOKENIZER = SeedTokenizerConfig.tiny()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Directories of a tiny tokenizer and of a tiny decoder for its embeddings."""
    root = tmp_path_factory.mktemp("models")
    weights = cases.random_like(abstract_params(TOKENIZER))
    model_dir.save(root / "tokenizer", "seed_tokenizer", {"sizes": TOKENIZER.to_dict()}, weights)
    for name, width in (("decoder", TOKENIZER.embedding_width), ("other", TOKENIZER.embedding_width + 2)):
        unclip, params = random_decoder(UnclipConfig.tiny(width))
        model_dir.save(root / name, "unclip", {"sizes": unclip.config.to_dict()}, params)
    return root


@pytest.fixture
def codes(tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "dog.png")
    rows = np.random.default_rng(0).integers(0, TOKENIZER.num_codes, (2, TOKENIZER.codes_per_image)).tolist()
    lines = [{"path": str(tmp_path / "dog.png"), "codes": rows[0]}, {"path": "gone/dog.png", "codes": rows[1]}]
    (tmp_path / "codes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "codes.jsonl"


def command(models, codes, out, *more, decoder="decoder"):
    parser = argparse.ArgumentParser()
    detokenize.add_parser(parser.add_subparsers())
    args = ["detokenize", "--model", models / "tokenizer", "--unclip", models / decoder, "--codes", codes, "--out", out]
    parsed = parser.parse_args([*map(str, args), "--sampler", "dpmpp", "--steps", "2", *more])
    return parsed.run(parsed)


def test_images_and_contact_sheet_are_drawn_and_resumed(models, codes, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(models, codes, out, "--candidates", "2") == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == [
        "000001_dog_0.png", "000001_dog_1.png", "000002_dog_0.png", "000002_dog_1.png",
        "contact_sheet.png", "drawing.json",
    ]  # fmt: skip
    images = [np.asarray(Image.open(out / name)) for name in names[:4]]
    assert all(image.shape == (64, 64, 3) for image in images)
    assert len({image.tobytes() for image in images}) == 4
    sheet = np.asarray(Image.open(out / "contact_sheet.png"))
    assert sheet.shape == (
        GAP + 2 * (192 + GAP),
        GAP + 3 * (192 + GAP),
        3,
    )  # the original, if it exists, and two candidates
    assert sheet[GAP + 96, GAP + 96].tolist() == [255, 0, 0]
    captured = capsys.readouterr()
    assert "4 images drawn, 0 existed" in captured.out
    assert "drawing: 100%" in captured.err

    (out / names[1]).unlink()
    kept = (out / names[0]).stat().st_mtime_ns
    command(models, codes, out, "--candidates", "2")
    assert "1 images drawn, 3 existed" in capsys.readouterr().out
    again = np.asarray(Image.open(out / names[1])).astype(int)
    assert np.abs(again - images[1]).max() <= 1  # drawn alone this time
    assert (out / names[0]).stat().st_mtime_ns == kept
    with pytest.raises(UserError, match=r"other settings \(seed\)"):
        command(models, codes, out, "--seed", "5")


@pytest.mark.parametrize(("line", "message"), [
    ('{"codes": [1, 2]}', "line 1 has 2 codes, but this tokenizer has 32"),
    (json.dumps({"codes": [10**6] * 32}), "line 1 has a code outside of 0 to"),
    ('{"codes": "1 2"}', "line 1: expected"),
    ("{", "line 1 is not valid JSON"),
    ("\n", "holds no codes"),
])  # fmt: skip
def test_bad_codes_are_refused_before_anything_is_written(models, tmp_path, line, message):
    (tmp_path / "codes.jsonl").write_text(line)
    with pytest.raises(UserError, match=message):
        command(models, tmp_path / "codes.jsonl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_decoder_of_another_width_is_refused(models, codes, tmp_path):
    with pytest.raises(UserError, match="this decoder expects width"):
        command(models, codes, tmp_path / "out", decoder="other")
    assert not (tmp_path / "out").exists()


def test_contact_sheet_keeps_shapes_and_holes():
    sheet = np.asarray(contact_sheet([[Image.new("RGB", (10, 20), "blue"), None], [None]], side=40))
    assert sheet.shape == (GAP + 2 * (40 + GAP), GAP + 2 * (40 + GAP), 3)
    blue = (sheet == [0, 0, 255]).all(-1)
    assert blue.sum() == 20 * 40
    assert blue[GAP : GAP + 40, GAP + 10 : GAP + 30].all()

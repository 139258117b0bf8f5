"""`seed-jax import unclip` and `seed-jax export unclip`."""

import argparse

import pytest

from seed_jax.cli import export, import_
from seed_jax.errors import UserError
from tests.models.diffusion.cases import FOLDER
from tests.support import golden

pytestmark = pytest.mark.slow  # an import of a whole decoder


def run(*words):
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    import_.add_parser(subparsers)
    export.add_parser(subparsers)
    args = parser.parse_args([str(word) for word in words])
    return args.run(args)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    out = tmp_path_factory.mktemp("model")
    run("import", "unclip", "--from", golden.path(FOLDER), "--out", out)
    return out


def test_there_and_back(model, tmp_path, capsys):
    pytest.importorskip("torch")
    out = tmp_path / "out"
    run("export", "unclip", "--model", model, "--out", out, "--image-encoder", golden.path(FOLDER), "--verify")
    assert "986 of 986 tensors exact; unet" in capsys.readouterr().out
    assert "passed" in (out / "parity.md").read_text()
    assert (out / "image_encoder/model.safetensors").is_file()
    with pytest.raises(UserError, match="exists and is not empty"):
        run("export", "unclip", "--model", model, "--out", out)


def test_missing_image_encoder_is_refused_first(model, tmp_path):
    with pytest.raises(UserError, match="image_encoder does not exist"):
        run("export", "unclip", "--model", model, "--out", tmp_path / "out", "--image-encoder", tmp_path)
    assert not (tmp_path / "out").exists()

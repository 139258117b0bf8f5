"""Model directories and bundles name what belongs to a model."""

import dataclasses
import json

import numpy as np
import pytest

from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.errors import UserError
from seed_jax.inference.language_model import read_references, write_bundle
from seed_jax.inference.seed_llama import LoadConfig


@pytest.fixture
def parts(tmp_path):
    """Directories of each kind; their weights do not matter here."""
    params = {"w": np.zeros(2, np.float32)}
    kinds = {"llm": ModelKind.LLAMA, "tokenizer": ModelKind.IMAGE_TOKENIZER, "decoder": ModelKind.UNCLIP}
    for name, kind in kinds.items():
        keys = {"sizes": {}, "image_tokenizer": "../tokenizer", "prompt_style": "llama2"} if name == "llm" else {}
        model_dir.save(tmp_path / name, kind, keys, params)
    return tmp_path


def test_a_bundle_names_its_parts_with_relative_paths(parts):
    bundle = parts / "bundle"
    write_bundle(bundle, language_model=parts / "llm", image_tokenizer=parts / "tokenizer", decoder=parts / "decoder")
    stored = json.loads((bundle / "config.json").read_text())
    assert stored["language_model"] == "../llm"
    references = read_references(bundle)
    assert references.language_model.resolve() == parts / "llm"
    assert references.image_tokenizer.resolve() == parts / "tokenizer"
    assert references.decoder.resolve() == parts / "decoder"
    moved = parts.rename(parts.parent / "moved")
    assert read_references(moved / "bundle").decoder.resolve() == moved / "decoder"


def test_what_a_bundle_does_not_name_comes_from_its_language_model(parts):
    write_bundle(parts / "bundle", language_model=parts / "llm")
    references = read_references(parts / "bundle")
    assert references.image_tokenizer.resolve() == parts / "tokenizer"
    assert references.prompt_style == "llama2"
    assert references.decoder is None


def test_a_decoder_that_is_not_wanted_is_left_out_however_often_the_config_is_resolved(parts):
    path = parts / "llm/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "decoder": "../decoder"}))
    config = LoadConfig(parts / "llm")
    assert config.resolve().resolve().decoder.resolve() == parts / "decoder"
    assert dataclasses.replace(config, use_decoder=False).resolve().resolve().decoder is None


@pytest.mark.parametrize("name", ["\ud800", "a\0b"])
def test_a_name_that_is_no_path_is_refused(parts, name):
    path = parts / "llm/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_tokenizer": name}))
    with pytest.raises(UserError, match=r"'image_tokenizer' .*no path"):
        read_references(parts / "llm")


def test_a_part_of_another_kind_is_refused(parts):
    with pytest.raises(UserError, match=r"decoder.*kind"):
        write_bundle(parts / "bundle", language_model=parts / "decoder")
    assert not (parts / "bundle").exists()


def test_the_bundle_command_prints_what_it_names(parts, capsys):
    from seed_jax import cli

    arguments = ["--model", str(parts / "llm"), "--style", "vicuna", "--out", str(parts / "b")]
    assert cli.main(["bundle", *arguments]) == 0
    printed = capsys.readouterr().out
    assert f"image tokenizer {parts / 'tokenizer'}" in printed
    assert "decoder none" in printed
    assert "prompt style vicuna" in printed
    assert cli.main(["bundle", *arguments]) == 2  # not overwritten

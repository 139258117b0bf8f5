"""A whole model directory has no findings; each damage is named."""

import json
import shutil

import jax
import numpy as np
import pytest

from seed_jax.checkpoint import model_dir
from seed_jax.doctor import cases
from seed_jax.doctor.model_check import check_model
from seed_jax.inference.language_model import write_bundle
from tests.hub.servers import POINTER


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A bundle of a language model and an image tokenizer."""
    root = tmp_path_factory.mktemp("whole")
    files = {path.name: path for path in cases.VOCABULARY.iterdir()}
    config = {"sizes": cases.LLAMA.to_dict(), "image_tokenizer": None}
    model_dir.save(root / "llama", "llama", config, cases.llama_params(), files=files)
    sizes = {"sizes": cases.TOKENIZER.to_dict()}
    model_dir.save(root / "tokenizer", "seed_tokenizer", sizes, cases.tokenizer_params())
    write_bundle(root / "bundle", language_model=root / "llama", image_tokenizer=root / "tokenizer")
    return root


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def findings(directory):
    return " ".join(finding.problem for check in check_model(directory) for finding in check.findings)


def test_a_whole_bundle_has_no_findings(whole):
    checks = check_model(whole / "bundle")
    assert [check.kind for check in checks] == ["seed_llama", "llama", "seed_tokenizer"]
    assert not findings(whole / "bundle")
    assert checks[1].tensors == len(jax.tree.leaves(cases.llama_params()))


def test_what_is_missing_or_of_another_model_is_named(copy):
    config = json.loads((copy / "llama/config.json").read_text())
    config["sizes"]["num_layers"] += 1
    (copy / "llama/config.json").write_text(json.dumps(config))
    assert "has shape" in findings(copy / "llama")
    shutil.rmtree(copy / "tokenizer/params")
    assert "no parameters" in findings(copy / "tokenizer")
    assert "no parameters" in findings(copy / "bundle")
    shutil.rmtree(copy / "tokenizer")
    assert "neither a model directory" in findings(copy / "bundle")


def test_damaged_parameters_are_named(copy):
    largest = max((copy / "llama/params").rglob("*"), key=lambda path: path.stat().st_size)
    with largest.open("r+b") as file:
        file.truncate(largest.stat().st_size // 2)
    assert "its SHA-256 differs" in findings(copy / "llama")
    (copy / "llama/checksums.json").unlink()
    assert "cannot be read" in findings(copy / "llama")
    shutil.rmtree(copy / "llama/params")
    assert "no parameters" in findings(copy / "llama")


def test_values_that_are_not_finite_are_named(tmp_path):
    params = cases.tokenizer_params()
    params["ln_vision"]["bias"] = np.full_like(params["ln_vision"]["bias"], np.nan)
    model_dir.save(tmp_path / "model", "seed_tokenizer", {"sizes": cases.TOKENIZER.to_dict()}, params)
    assert "ln_vision/bias holds NaN" in findings(tmp_path / "model")


def test_pointers_and_foreign_vocabularies_are_named(copy):
    (copy / "llama/tokenizer.model").write_bytes(POINTER)
    assert "Git LFS pointer" in findings(copy / "llama")
    (copy / "llama/added_tokens.json").write_text("{}")
    assert findings(copy / "llama").count(":") > 1

"""Model directories are whole, strict and readable from a workdir."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from seed_jax.checkpoint import model_dir
from seed_jax.errors import UserError


@pytest.fixture
def params():
    return {"a": {"kernel": jnp.arange(6.0).reshape(2, 3)}, "step": jnp.asarray(3, jnp.int32)}


def test_round_trip_with_dtype(tmp_path, params):
    extra = tmp_path / "tokenizer.model"
    extra.write_bytes(b"pieces")
    model_dir.save(tmp_path / "m", "llama", {"sizes": {"x": 1}}, params, files={"tokenizer.model": extra})
    loaded = model_dir.load(tmp_path / "m", "llama", dtype="bfloat16")
    assert loaded.config["sizes"] == {"x": 1}
    assert loaded.params["a"]["kernel"].dtype == jnp.bfloat16
    assert loaded.params["step"].dtype == jnp.int32
    np.testing.assert_array_equal(loaded.params["a"]["kernel"], params["a"]["kernel"])
    assert (loaded.directory / "tokenizer.model").read_bytes() == b"pieces"


def test_a_full_folder_is_not_overwritten(tmp_path, params):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not empty"):
        model_dir.save(tmp_path / "m", "llama", {}, params)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_wrong_kind_format_and_missing_config(tmp_path, params):
    model_dir.save(tmp_path / "m", "unclip", {}, params)
    with pytest.raises(UserError, match=r"unclip.*expected.*llama"):
        model_dir.load(tmp_path / "m", "llama")
    config = tmp_path / "m" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "format": 99}))
    with pytest.raises(UserError, match="format 99, expected 1"):
        model_dir.load(tmp_path / "m")
    with pytest.raises(UserError, match="neither a model directory nor a training workdir"):
        model_dir.load(tmp_path / "nowhere")


def test_check_tree_lists_everything():
    have = {"a": np.zeros(2), "b": np.zeros(3), "odd": np.zeros(1)}
    want = {"a": np.zeros(2), "b": np.zeros(4), "gone": np.zeros(1)}
    with pytest.raises(UserError) as error:
        model_dir.check_tree(have, want, "file.bin")
    assert all(
        part in str(error.value)
        for part in ("missing gone", "unexpected odd", "b has shape (3,), expected (4,)", "file.bin")
    )

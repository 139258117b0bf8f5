"""The original's tokenizer files come in and go out again bit by bit."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from seed_jax.checkpoint import lazy, model_dir
from seed_jax.checkpoint.store import Store
from seed_jax.cli import main
from seed_jax.models.tokenizer.image_text import ImageText, ImageTextConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig, abstract_params
from seed_jax.models.tokenizer.text_branch import TextBranchConfig
from seed_jax.sharding import unbox
from seed_jax.train.stages.codebook.model import CodebookModel, CodebookSizes
from tests.models.tokenizer.cases import random_like
from tests.support import golden

VIT = "visual_encoder."
HEADS = ("--vit-heads", "4", "--qformer-heads", "4", "--decoder-heads", "4")
EXTRAS = {"temp": np.float32(0.07)[...], "vision_proj.weight": np.ones((2, 48), np.float32)}


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """The released form: the image encoder apart, extras inside."""
    folder = tmp_path_factory.mktemp("official")
    weights = golden.tensors("tokenizer_tiny/release.weights.safetensors")
    save_file({n: a for n, a in weights.items() if not n.startswith(VIT)} | EXTRAS, folder / "q.safetensors")
    encoder = {n.removeprefix(VIT): a for n, a in weights.items() if n.startswith(VIT)}
    save_file(encoder, folder / "vit.safetensors")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory, official):
    out = tmp_path_factory.mktemp("model") / "m"
    assert run_import(official, out) == 0
    return out


def run_import(folder, out, *options, quantizer="q.safetensors", vit="vit.safetensors") -> int:
    files = ["--quantizer", str(folder / quantizer), *(["--vit", str(folder / vit)] if vit else [])]
    return main(["import", "tokenizer", *files, "--out", str(out), *HEADS, *options])


def export(model, out, *options) -> int:
    return main(["export", "tokenizer", "--model", str(model), "--out", str(out), *options])


def names(folder) -> list[str]:
    """Return the weight files and subfolders; the card and the scripts have tests of their own."""
    return sorted(path.name for path in folder.iterdir() if path.suffix not in (".json", ".md", ".py"))


def test_a_vit_without_official_names_is_refused(tmp_path, capsys):
    sizes = SeedTokenizerConfig.small()
    params = random_like(abstract_params(sizes))
    model_dir.save(tmp_path / "m", "seed_tokenizer", {"sizes": sizes.to_dict()}, params)
    assert export(tmp_path / "m", tmp_path / "out") == 2
    assert "CLIP" in capsys.readouterr().err
    assert names(tmp_path) == ["m"]


def same(a, b) -> None:
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert array.dtype == b[name].dtype, name
        assert array.tobytes() == b[name].tobytes(), name


@pytest.mark.slow
def test_everything_returns_in_one_file(model, official, tmp_path):
    assert export(model, tmp_path / "out", "--format", "safetensors") == 0
    assert names(tmp_path / "out") == ["seed_quantizer.safetensors"]
    encoder = {VIT + name: array for name, array in load_file(official / "vit.safetensors").items()}
    same(load_file(tmp_path / "out/seed_quantizer.safetensors"), load_file(official / "q.safetensors") | encoder)
    assert run_import(tmp_path / "out", tmp_path / "again", quantizer="seed_quantizer.safetensors", vit=None) == 0
    first, second = (model_dir.open_lazily(d).params for d in (model, tmp_path / "again"))
    for (path, a), (_, b) in zip(
        *(jax.tree.leaves_with_path(lazy.materialize(t)) for t in (first, second)), strict=True
    ):
        assert a.tobytes() == b.tobytes(), path
    assert (model / "extras.safetensors").read_bytes() == (tmp_path / "again/extras.safetensors").read_bytes()


def test_the_image_encoder_stays_apart_or_out(model, official, tmp_path):
    torch = pytest.importorskip("torch")
    assert export(model, tmp_path / "beside", "--vit-beside") == 0
    assert names(tmp_path / "beside") == [
        "eva_vit_g.pth", "eva_vit_g.safetensors", "seed_quantizer.pt", "seed_quantizer.safetensors",
    ]  # fmt: skip
    for ours, theirs in (("seed_quantizer.pt", "q.safetensors"), ("eva_vit_g.pth", "vit.safetensors")):
        state = torch.load(tmp_path / "beside" / ours, weights_only=True)
        same({name: tensor.numpy() for name, tensor in state.items()}, load_file(official / theirs))
    assert export(model, tmp_path / "without", "--without-vit", "--format", "pt") == 0
    assert names(tmp_path / "without") == ["seed_quantizer.pt"]
    state = torch.load(tmp_path / "without/seed_quantizer.pt", weights_only=True)
    assert state.keys() == load_file(official / "q.safetensors").keys()


@pytest.mark.parametrize(
    "options", [["--vit-beside"], ["--without-vit", "--dtype", "bfloat16"], ["--dtype", "float16"]]
)
def test_exports_equal_pytorch(model, tmp_path, options):
    pytest.importorskip("torch")
    assert export(model, tmp_path / "out", "--verify", *options) == 0
    report = json.loads((tmp_path / "out/parity.json").read_text())
    assert [check["name"] for check in report["checks"]] == ["causal embeddings", "codes", "generation embedding"]
    without_encoder = 199 - 43
    # Both formats, every tensor.
    assert len(report["differences"]) == 2 * (without_encoder if "--without-vit" in options else 199)
    positions = [found for found in report["differences"] if found["name"].endswith("position_ids")]
    assert {found["after"] for found in positions} == {"int64"}


def test_imports_equal_pytorch(official, tmp_path, capsys):
    pytest.importorskip("torch")
    assert run_import(official, tmp_path / "out", "--verify") == 0
    assert "199 of 199 tensors exact" in (out := capsys.readouterr().out)
    assert out.rstrip().endswith("passed")


def test_the_report_is_written_without_pytorch(official, tmp_path, monkeypatch, capsys):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    assert run_import(official, tmp_path / "m", "--verify") == 0
    assert "codes and embeddings not compared (torch not installed): passed" in capsys.readouterr().out
    assert export(tmp_path / "m", tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["seed_quantizer.safetensors"]


def save_run(directory, kind, config, variables) -> None:
    model_dir.save(directory / "model", kind, config, None)
    store = Store(directory)
    store.save(3, params=variables, optimizer={"count": jnp.zeros(())}, data={}, meta={"architecture": {}})
    store.close()


def test_a_trained_tokenizer_keeps_retrieval_and_text_branch(tmp_path):
    tiny = SeedTokenizerConfig.tiny()
    tokenizer = dataclasses.replace(tiny, qformer=dataclasses.replace(tiny.qformer, vocab_size=50))
    reverse = dataclasses.replace(tiny.qformer, num_queries=7, causal=False)
    sizes = CodebookSizes(tokenizer, 16, TextBranchConfig(32, tiny.decoder, reverse, state_width=24))
    variables = random_like(unbox(CodebookModel(sizes).abstract()))
    health = {"idle": jnp.zeros(tiny.num_codes)}
    save_run(tmp_path / "run", "seed_tokenizer", sizes.to_dict(), {**variables, "health": health})
    assert export(tmp_path / "run", tmp_path / "out", "--format", "safetensors", "--verify", "tensors") == 0
    found = load_file(tmp_path / "out/seed_quantizer.safetensors")
    expected = {
        "temp": (),
        "text_proj.weight": (16, 64),
        "reverse_tokens_text": (1, 7, 64),
        "distill_text_proj.weight": (24, 64),
        "Qformer.bert.embeddings.word_embeddings.weight": (50, 64),
        "Qformer.bert.encoder.layer.1.intermediate.dense.weight": (128, 64),
        "quantize.embedding.weight": (128, 8),
    }
    assert {name: found[name].shape for name in expected} == expected
    codebook = variables["params"]["codebook"]
    np.testing.assert_array_equal(found["quantize.embedding.weight"], codebook)
    quantizer = "seed_quantizer.safetensors"
    assert run_import(tmp_path / "out", tmp_path / "again", "--verify", "tensors", quantizer=quantizer, vit=None) == 0
    extras = load_file(tmp_path / "again/extras.safetensors")
    np.testing.assert_array_equal(extras["text_proj.weight"], variables["retrieval"]["text_proj"]["kernel"].T)


def test_a_model_of_stage_one_is_exported_too(tmp_path):
    tiny = SeedTokenizerConfig.tiny()
    config = ImageTextConfig(tiny.vit, dataclasses.replace(tiny.qformer, vocab_size=50), joint_width=16)
    image, text = jax.ShapeDtypeStruct((1, 56, 56, 3), jnp.float32), jax.ShapeDtypeStruct((1, 4), jnp.int32)
    params = random_like(unbox(jax.eval_shape(ImageText(config).init, jax.random.key(0), image, text)["params"]))
    save_run(tmp_path / "run", "seed_qformer", {"sizes": config.to_dict()}, {"params": params})
    assert export(tmp_path / "run", tmp_path / "out", "--without-vit", "--format", "safetensors", "--verify") == 0
    found = load_file(tmp_path / "out/causal_qformer.safetensors")
    assert not any(name.startswith(VIT) for name in found)
    assert {"query_tokens", "ln_vision.weight", "temp", "vision_proj.bias"} <= found.keys()


class Code:
    """What a malicious checkpoint would carry."""

    def __reduce__(self):
        return print, ("executed",)


def test_code_in_a_pickle_is_never_run(official, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    torch.save({"query_tokens": Code()}, tmp_path / "q.pt")
    shutil.copy(official / "vit.safetensors", tmp_path)
    assert run_import(tmp_path, tmp_path / "out", quantizer="q.pt") == 2
    captured = capsys.readouterr()
    assert "contains code, which is never executed" in captured.err
    assert "executed" not in captured.out
    assert names(tmp_path) == ["q.pt", "vit.safetensors"]


def test_what_is_refused_leaves_nothing_behind(model, official, tmp_path, capsys):
    def refused(message, code):
        assert code == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
        assert [name for name in names(tmp_path) if "out" in name] == []

    (tmp_path / "in").mkdir()
    save_file(load_file(official / "q.safetensors"), tmp_path / "in/q.safetensors")
    refused("give its file (eva_vit_g.pth) with --vit", run_import(tmp_path / "in", tmp_path / "out", vit=None))
    whole = (official / "vit.safetensors").read_bytes()
    (tmp_path / "in/vit.safetensors").write_bytes(whole[: len(whole) // 2])
    refused("is not a valid safetensors file", run_import(tmp_path / "in", tmp_path / "out"))
    (tmp_path / "in/vit.pth").write_bytes(whole)
    code = run_import(tmp_path / "in", tmp_path / "out", vit="vit.pth")
    refused("it is truncated, of another format, or contains code", code)
    wild = load_file(official / "q.safetensors")
    wild["blocks.1.mlp.fc1.weight"][0, 0] = 1e6
    save_file(wild, tmp_path / "in/wild.safetensors")
    (tmp_path / "in/vit.safetensors").write_bytes(whole)
    assert run_import(tmp_path / "in", tmp_path / "m", quantizer="wild.safetensors") == 0
    refused(
        "blocks.1.mlp.fc1.weight holds 1e+06, more than float16",
        export(tmp_path / "m", tmp_path / "out", "--dtype", "float16"),
    )
    model_dir.save(tmp_path / "llama", "llama", {}, {"x": np.zeros(1)})
    refused("holds a model of kind 'llama', expected 'seed_tokenizer'", export(tmp_path / "llama", tmp_path / "out"))

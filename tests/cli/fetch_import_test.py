"""`seed-jax fetch --import`: from files in the official formats on a hub to a model that sees, writes and draws."""

import json
import shutil

import numpy as np
import pytest
from huggingface_hub import constants

from seed_jax.cli import main
from seed_jax.hub.manifest import load_manifest
from seed_jax.inference.drawing.request import DrawOptions
from seed_jax.inference.language_model import read_references
from seed_jax.inference.seed_llama import SeedLlama
from tests.hub import official_files
from tests.hub.download_test import set_endpoint
from tests.hub.servers import Server

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return official_files.write(tmp_path_factory.mktemp("official"))


@pytest.fixture
def hub(files, monkeypatch, tmp_path):
    """Serve the files as a hub does, and write the manifest that names them."""
    server = Server()
    set_endpoint(monkeypatch, server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    server.files = dict(files)
    (tmp_path / "manifest.toml").write_text(official_files.manifest(files))
    load_manifest.cache_clear()
    yield server
    server.close()


def run(tmp_path, *options, names=("tiny",)):
    manifest = tmp_path / "manifest.toml"
    arguments = ["fetch", *names, "--import", "--to", tmp_path / "models/8b", "--manifest", manifest, "--retries", 0]
    return main([str(argument) for argument in (*arguments, *options)])


@pytest.mark.slow
def test_one_command_makes_a_model_that_sees_and_draws(hub, tmp_path, capsys):
    hub.fail("official/seed/unclip/unet/diffusion_pytorch_model.fp16.safetensors", "403", forever=True)
    out = tmp_path / "models/8b"
    assert run(tmp_path) == 2
    assert "diffusion_pytorch_model.fp16.safetensors" in capsys.readouterr().err
    assert not (out / "config.json").exists()  # nothing unfinished is a model
    assert not any((out / role).exists() for role in ("language_model", "image_tokenizer", "decoder"))

    hub.faults.clear()
    hub.requests.clear()
    assert run(tmp_path) == 0
    assert not hub.reads("seed_quantizer.pt")  # what was complete is not fetched again
    printed = capsys.readouterr().out
    assert f"ready: seed-jax chat --model {out} --out images" in printed
    assert "fits" in printed
    references = read_references(out)
    assert references.prompt_style == "vicuna"
    assert references.language_model == out / "language_model"
    for role in ("language_model", "image_tokenizer", "decoder"):
        assert json.loads((out / role / "parity.json").read_text())["passed"]

    shutil.move(out, tmp_path / "moved")
    report = tmp_path / "report.md"
    assert main(["verify", "official", "--model", str(tmp_path / "moved"), "--out", str(report)]) == 0
    text = report.read_text()
    assert "Import of a language model: passed" in text
    assert "| quantizer/seed_quantizer.pt | `" in text  # found beside the moved model, with its recorded hash
    shutil.rmtree(tmp_path / "moved/downloads")  # not needed any more
    assert main(["doctor", str(tmp_path / "moved"), "--no-fit"]) == 0
    card = (tmp_path / "moved/README.md").read_text()
    assert "seed-jax chat --model" in card
    model = SeedLlama.load(tmp_path / "moved", dtype="float32")
    answer = model.ask("Draw a cat.", [np.zeros((40, 40, 3), np.uint8)], mode="image", max_new_tokens=40)
    (drawn,) = model.draw(answer.segments, options=DrawOptions("ddim", 2))
    assert drawn.size == (16, 16)

    hub.requests.clear()
    shutil.move(tmp_path / "moved", out)
    assert run(tmp_path) == 0
    assert not hub.requests


@pytest.mark.slow
def test_an_interrupted_import_continues_with_the_next_part(hub, tmp_path, capsys):
    unet = "official/seed/unclip/unet/config.json"
    whole = hub.files[unet]
    hub.files[unet] = whole.replace(b'"silu"', b'"gelu"')  # another file of the same size
    out = tmp_path / "models/8b"
    assert run(tmp_path) == 2
    assert "act_fn" in capsys.readouterr().err
    assert (out / "image_tokenizer/config.json").exists()
    assert not (out / "decoder").exists()
    assert not (out / "config.json").exists()
    hub.files[unet] = whole
    (out / "downloads/unclip/unet/config.json").unlink()
    record = out / "downloads/unclip/fetched.json"
    record.write_text(json.dumps({"files": {}}))
    hub.requests.clear()
    assert run(tmp_path) == 0
    assert f"{out / 'image_tokenizer'}: complete" in capsys.readouterr().out
    assert (out / "config.json").exists()
    assert not hub.reads("eva_vit_g.pth")


def test_a_single_artefact_becomes_a_model_directory(hub, tmp_path, capsys):
    assert run(tmp_path, "--verify", "none", names=["quantizer"]) == 0
    assert "quantizer: ready" in capsys.readouterr().out
    assert (tmp_path / "models/8b/quantizer/params").is_dir()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["text"], "omit --import"),
        (["quantiser"], "did you mean quantizer"),
        (["tiny", "llm"], "exactly one"),
    ],
)
def test_what_cannot_be_imported_is_named(hub, tmp_path, capsys, names, words):
    assert run(tmp_path, names=names) == 2
    assert words in capsys.readouterr().err
    assert not hub.requests


def test_another_model_is_not_overwritten(hub, tmp_path, capsys):
    (tmp_path / "models/8b").mkdir(parents=True)
    (tmp_path / "models/8b/config.json").write_text('{"kind": "llama"}')
    assert run(tmp_path) == 2
    assert "holds another model" in capsys.readouterr().err
    assert not hub.requests


def test_a_missing_package_is_named_before_anything_is_fetched(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("seed_jax.cli.fetch_import.find_spec", lambda _: None)
    assert run(tmp_path) == 2
    assert "pip install 'seed-jax[torch,decoder]'" in capsys.readouterr().err
    assert not hub.requests


def test_the_disk_must_hold_downloads_and_models(hub, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=5_000_000))
    assert run(tmp_path) == 2
    assert "free some space" in capsys.readouterr().err
    assert not hub.requests

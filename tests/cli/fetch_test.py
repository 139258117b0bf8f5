import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from seed_jax.cli import fetch
from seed_jax.errors import UserError
from seed_jax.hub.manifest import load_manifest
from tests.hub.servers import Server

ROOT = Path(__file__).parents[2]


def run(*arguments):
    parser = argparse.ArgumentParser()
    fetch.add_parser(parser.add_subparsers())
    args = parser.parse_args(["fetch", *map(str, arguments)])
    return args.run(args)


def test_lists_every_name_once(capsys):
    assert run("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    manifest = load_manifest()
    names = [line.split(" ", 1)[0] for line in lines if line]
    assert sorted(names) == sorted(["NAME", "BUNDLE", *manifest.artefacts, *manifest.bundles])
    assert next(line for line in lines if line.startswith("seed-llama-8b-sft")).split()[1:3] == ["27.2", "GB"]


def test_lists_all_that_is_known_as_json(capsys):
    assert run("--list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in listed["artefacts"]] == list(load_manifest().artefacts)
    quantizer = listed["artefacts"][0]
    assert quantizer["files"][0]["sha256"] == "322a9fba55cb0e97e1a633981fbbdff20577af69146a0f23fa7b14201459a13f"
    assert quantizer["sources"][0]["where"] == "AILab-CVC/seed-tokenizer-2"
    assert {"seed-llama-8b", "seed-llama-14b"} <= {entry["name"] for entry in listed["bundles"]}


def test_lists_the_details_of_names(capsys):
    assert run("--list", "seed-llama-lora", "llama-2-13b-chat") == 0
    output = capsys.readouterr().out
    assert "not available: No LoRA weights" in output
    assert "only with --accept-licence" in output
    assert "sha256 unknown" in output
    assert run("--list", "--json", "seed-llama-8b") == 0
    listed = json.loads(capsys.readouterr().out)
    assert "seed-quantizer" in [entry["name"] for entry in listed["artefacts"]]
    assert [entry["name"] for entry in listed["bundles"]] == ["seed-llama-8b"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name an artefact"),
        (["seed-quantizer"], "--to is missing"),
        (["seed-quantiser", "--to", "x"], "did you mean seed-quantizer"),
        (["--list", "seed-quantiser"], "did you mean seed-quantizer"),
        (["seed-llama-lora", "--to", "x"], "cannot be fetched"),
        (["--json"], "--list"),
        (["--manifest", "none.toml", "--list"], r"none\.toml"),
    ],
)
def test_bad_arguments_are_named(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        run(*arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--workers=0", "--workers=x", "--timeout=0", "--timeout=nan", "--retries=-1"])
def test_bad_numbers_are_named(capsys, option):
    with pytest.raises(SystemExit) as stop:
        run(option)
    assert stop.value.code == 2
    assert "is not a number from" in capsys.readouterr().err


def test_fetches_and_says_what_is_next(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    server = Server()
    try:
        server.files["plain/w.bin"] = bytes(5000)
        manifest = tmp_path / "manifest.toml"
        manifest.write_text(
            '[[artefact]]\nname = "w"\ntitle = "t"\npurpose = "p"\nlicence = "mit"\nlicence_confidence = "confirmed"\n'
            'gated = "no"\nimport = ["import", "llama", "--from", "{w}", "--out", "{out}"]\n'
            f'[[artefact.source]]\nurl = "{server.url}/plain"\nconfidence = "confirmed"\n'
            '[[artefact.file]]\npath = "w.bin"\nsize = 5000\nsha256 = "unknown"\nconfidence = "confirmed"\n'
        )
        out = tmp_path / "out directory"
        assert run("w", "--to", out, "--manifest", manifest) == 0
        assert (out / "w/w.bin").read_bytes() == bytes(5000)
        output = capsys.readouterr().out
        assert "1 files complete and checked, 1 of them downloaded now" in output
        assert f"seed-jax import llama --from '{out}/w' --out '{out}/models/w'" in output
    finally:
        server.close()


def test_help_loads_nothing_heavy():
    program = (
        "import argparse, sys\n"
        "from seed_jax.cli import fetch\n"
        "fetch.add_parser(argparse.ArgumentParser().add_subparsers())\n"
        "print([name for name in ('jax', 'numpy', 'httpx', 'huggingface_hub', 'tqdm') if name in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == "[]"

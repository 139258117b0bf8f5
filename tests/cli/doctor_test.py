"""`seed-jax doctor`: one report as text and JSON, and an exit code that scripts can use."""

import json
import shutil

import pytest

from seed_jax.checkpoint import model_dir
from seed_jax.cli import main
from seed_jax.doctor import cases, self_test
from seed_jax.doctor.self_test import Outcome


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    place = tmp_path_factory.mktemp("model") / "tokenizer"
    model_dir.save(place, "seed_tokenizer", {"sizes": cases.TOKENIZER.to_dict()}, cases.tokenizer_params())
    return place


def test_the_report_can_be_pasted(model, capsys, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert main(["doctor", "--no-fit", str(model)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("---")
    assert lines[-1] == "--- end ---"
    for start in (
        "seed_jax ",
        "cpu: ",
        "memory: ",
        "core: ",
        "extra decoder: ",
        "devices: 8 x cpu",
        "variable: HF_ENDP",
    ):
        assert any(line.startswith(start) for line in lines), start
    assert any(line.startswith(f"model {model} (seed_tokenizer): complete") for line in lines)
    assert not any(line.startswith("hub: ") for line in lines)  # the network is not used unasked


def test_a_damaged_model_is_an_exit_code(model, capsys, tmp_path):
    assert main(["doctor", "--no-fit", "--json", str(tmp_path)]) == 1
    report = json.loads(capsys.readouterr().out)
    assert "neither a model directory" in report["models"][0]["findings"][0]["problem"]
    assert report["devices"]["platform"] == "cpu"
    assert "jax" in report["packages"]["core"]["installed"]


def test_a_flipped_bit_is_named(model, capsys, tmp_path):
    shutil.copytree(model, tmp_path / "m")
    path = tmp_path / "m/params/manifest.ocdbt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert main(["doctor", "--no-fit", str(tmp_path / "m")]) == 1
    assert "manifest.ocdbt is not what was written" in capsys.readouterr().out


@pytest.mark.parametrize("value", [0.5, 2.0, None])
def test_the_self_test_decides_the_exit_code(capsys, monkeypatch, value):
    outcome = Outcome("logits", "highest", value, 1.0, "from PyTorch", 0.1)

    def run_self_test(report):
        report(outcome)
        return [outcome]

    monkeypatch.setattr(self_test, "run_self_test", run_self_test)
    code = main(["doctor", "--no-fit", "--self-test"])
    assert code == (0 if value == 0.5 else 1)
    printed = capsys.readouterr().out
    assert f"self-test: {int(value == 0.5)} of 1 passed" in printed
    assert ("FAILED" in printed) == (value != 0.5)

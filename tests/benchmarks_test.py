"""The benchmark suites run as documented, and leave tables with every measurement on both sides."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ABSENT = ("grain", "array_record", "clu")  # from the GPU image that the script is written for
BLOCKER = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


@pytest.mark.slow
def test_the_gpu_script_runs_where_data_packages_are_absent(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "XLA_FLAGS": ""}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        ["benchmarks/gpu.sh", str(tmp_path / "out"), "--scale", "tiny", "--seconds", "900"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "out/results.json").read_text())["rows"]
    assert [row for row in rows if row["value"] is None] == []
    measured = {(row["item"], row["side"]) for row in rows}
    items = ("ceilings", "attention", "decode", "train", "encode", "draw")
    assert measured == {(item, side) for item in items for side in ("seed_jax", "torch")}
    table = (tmp_path / "out/results.md").read_text()
    assert "| train | lora, 2 layers | tokens/s |" in table
    assert (tmp_path / "out/rows.jsonl").read_text().count("\n") == len(rows)


def test_a_suite_without_its_device_is_one_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, "benchmarks/run.py", "--suite", "gpu", "--out", str(tmp_path)],
        cwd=ROOT, env={**os.environ, "PATH": "/nowhere"}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "NVIDIA GPU" in done.stderr
    assert "Traceback" not in done.stderr

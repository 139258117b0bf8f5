"""The benchmark suites run as documented, and leave tables with every measurement on both sides."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import run
from seed_jax.plan import topology
from seed_jax.train.config import load_config

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


@pytest.mark.slow
def test_plans_are_rows_with_the_time_of_a_step(tmp_path):
    done = subprocess.run(
        [sys.executable, "benchmarks/run.py", "--suite", "tpu-plan", "--scale", "tiny", "--out", str(tmp_path)],
        cwd=ROOT, env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert row["value"] == row["plan"]["time"]["step"] > 0
    assert "| plan | pretrain:tiny on cpu:8 | s |" in (tmp_path / "results.md").read_text()
    assert "collectives" not in (tmp_path / "results.md").read_text()
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == row


@pytest.mark.parametrize(("config", "name"), run.PLANS)
def test_suites_plan_existing_configs_and_topologies(config, name):
    pytest.importorskip("libtpu")
    assert load_config(config)
    assert topology.find(name).exact


def test_a_suite_without_its_device_is_one_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, "benchmarks/run.py", "--suite", "gpu", "--out", str(tmp_path)],
        cwd=ROOT, env={**os.environ, "PATH": "/nowhere"}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "NVIDIA GPU" in done.stderr
    assert "Traceback" not in done.stderr

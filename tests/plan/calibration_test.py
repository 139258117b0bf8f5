"""The estimate against published runs, compiled with libtpu."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from seed_jax import accelerators
from seed_jax.plan import calibration

ROOT = Path(__file__).parents[2]
PLAN = "import sys; from seed_jax.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed")
@pytest.mark.parametrize("run", calibration.RUNS, ids=lambda run: run.name)
def test_published_runs_are_planned_within_the_error_bars(tmp_path, run):
    """Plan a published run from a config.json of its sizes, in a separate process, as libtpu stays loaded."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"kind": "llama", "format": 1, "sizes": run.sizes.to_dict()}))
    mesh = ",".join(f"{axis}={size}" for axis, size in run.mesh.items())
    options = ["--config", str(ROOT / "configs/pretrain_full.py:8b"), "--topology", run.topology, "--mesh", mesh]
    options += ["--batch", str(run.rows * run.chips), "--remat", run.remat]
    options += ["--set", f"model.init={model}", "--set", "optimizer.accumulation=1"]
    options += ["--set", "compiler=xla_tpu_scoped_vmem_limit_kib="]  # as published, and as calibrated
    done = subprocess.run(
        [sys.executable, "-c", PLAN, "plan", "--json", *options],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    step = json.loads(done.stdout)["time"]["step"]
    # As recorded: the vocabulary is SEED's, 0.2 % more FLOPs than published, and compiler versions differ a little.
    assert step == pytest.approx(run.planned, rel=0.03)
    low, high = calibration.error_bars(accelerators.by_name(run.accelerator))
    assert low * step <= run.seconds <= high * step


def test_error_bars_are_wider_where_nothing_was_published():
    known, unknown = (calibration.error_bars(accelerators.by_name(name)) for name in ("v5e", "v4"))
    assert unknown[0] < known[0] < 1 < known[1] < unknown[1]
    assert accelerators.by_name("v4").cycle_scale == 1


def test_attention_takes_longer_than_its_matmuls_at_peak_and_grows_with_the_square_of_the_length():
    from seed_jax.plan.attention_cycles import kernel_seconds
    from seed_jax.plan.executed_flops import KernelCall

    chip = accelerators.by_name("v5e")
    calls = [
        KernelCall("splash_mha_fwd_segmented_residuals", (1, length // 512, length // 512), 2.0 * 2 * 512 * 512 * 128)
        for length in (2048, 8192)
    ]
    short, long = (kernel_seconds(call, chip) for call in calls)
    # 10 of 16 pairs of blocks, and 136 of 256.
    assert [call.blocks for call in calls] == [10, 136]
    assert all(kernel_seconds(call, chip) > call.flops / chip.peak_flops for call in calls)
    assert 11 < long / short < 13.6

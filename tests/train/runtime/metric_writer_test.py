"""Metrics are written without PyTorch, even where it is installed."""

import subprocess
import sys

PROGRAM = """
import sys
from pathlib import Path
from seed_jax.train.runtime.metric_writer import MetricWriter

writer = MetricWriter(Path(sys.argv[1]))
writer.write_scalars(1, {"loss": 2.5})
writer.close()
print("torch" in sys.modules)
import torch
print(torch.tensor(2.5).item())
"""


def test_torch_is_neither_imported_nor_made_unavailable(tmp_path):
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "2.5"]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.5}\n'
    assert list((tmp_path / "tensorboard").iterdir())

"""Evaluation in processes of their own: several devices, shards side by side, and a kill at any moment."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.evaluation import datasets
from tests.support import xla_flags

pytestmark = pytest.mark.slow
COUNT = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("processes")
    datasets.write_model(root / "models")
    datasets.vqa(root / "data", count=COUNT)
    return root


@pytest.fixture(scope="module")
def whole(root):
    """The predictions of one process with one device."""
    process = start(root, "whole", devices=1)
    assert process.wait(300) == 0
    return (root / "whole/vqav2/predictions.jsonl").read_bytes()


def start(root, out, *words, devices):
    command = [sys.executable, "-m", "seed_jax.cli", "eval", "vqav2", "--model", root / "models/llama"]
    command += ["--data", root / "data", "--out", root / out, "--beams", 2, "--max-new-tokens", 6, "--batch-size", 2]
    environment = {**os.environ, "XLA_FLAGS": xla_flags.flags(devices)}
    return subprocess.Popen([*map(str, command), *words], env=environment)


def test_shards_on_several_devices_give_what_one_device_gives(root, whole):
    """Two processes with four devices each share one directory; the last one to finish writes the scores."""
    processes = [start(root, "shards", "--shard", f"{index}/2", devices=4) for index in (1, 2)]
    assert [process.wait(300) for process in processes] == [0, 0]
    directory = root / "shards/vqav2"
    lines = (directory / "predictions.jsonl").read_text().splitlines()
    expected = [json.loads(line) for line in whole.decode().splitlines()]
    assert [json.loads(line) for line in lines] == expected
    scores = [json.loads((path / "results.json").read_text()) for path in (directory, root / "whole/vqav2")]
    assert scores[0]["per_sample"] == scores[1]["per_sample"]


def test_hosts_of_one_job_split_the_samples(root, whole):
    """As on a pod: the same command on every host, joined by jax.distributed."""
    config = root / "job.py"
    config.write_text(CONFIG)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "seed_jax.main", f"--config={config}", f"--workdir={root / 'job'}"]
    command += [f"--config.model.directory={root / 'models/llama'}", f"--config.data_root={root}"]
    joined = {**os.environ, "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(command, env={**joined, "JAX_PROCESS_ID": str(index), "XLA_FLAGS": xla_flags.flags(2)})
        for index in range(2)
    ]
    assert [process.wait(300) for process in processes] == [0, 0]
    lines = (root / "job/vqav2/predictions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [json.loads(line) for line in whole.decode().splitlines()]
    assert (root / "job/report.html").is_file()


CONFIG = """
from seed_jax.train.config import base
from seed_jax.train.config.evaluation import EvaluationConfig, TaskConfig

def get_config():
    config = base(EvaluationConfig)
    config.tasks.vqav2 = base(TaskConfig, data="data", batch_size=2, decoding={"beams": 2, "max_new_tokens": 6})
    return config
"""


def test_a_killed_process_resumes_to_the_same_bytes(root, whole):
    path = root / "killed/vqav2/predictions.jsonl"
    process = start(root, "killed", devices=1)
    deadline = time.monotonic() + 300
    while not (path.is_file() and path.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert 0 < len(path.read_bytes()) < len(whole)
    assert start(root, "killed", devices=1).wait(300) == 0
    assert path.read_bytes() == whole

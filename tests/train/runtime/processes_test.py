"""Several real processes: one is killed, the others end and say why, and other numbers of them go on exactly."""

import json
import time

import numpy as np
import pytest

from seed_jax.data.shards.records import Record
from tests.data.batches import mixtures
from tests.support import clusters, golden
from tests.support.clusters import Cluster

STEPS = 12


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def overrides(tmp_path_factory):
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("processes")
    records = [Record(f"f/{n}", "f", (rng.integers(0, 128, 32).astype(np.uint16), f"dog {n}"), {}) for n in range(30)]
    part = {"path": str(mixtures.write(folder / "pairs", records)), "task": "image_text_pair", "weight": 1.0}
    config = folder / "small.py"
    # The tiny config on shards of its own, as no option of the command line holds a list of parts.
    config.write_text(
        "from seed_jax.train.config import load_config\n"
        "def get_config():\n"
        "    config = load_config('pretrain:tiny')\n"
        "    config.data.demo = False\n"
        f"    config.data.vocabulary = {str(golden.path('text_tokenizer/tokenizer'))!r}\n"
        f"    config.data.mixture = ({ {**part, 'params': {'max_length': 64}}!r},)\n"
        f"    config.steps, config.log_every, config.checkpoint.every_steps = {STEPS}, 1, 3\n"
        "    config.data.batch_size, config.data.sequence_length = 8, 64\n"
        "    return config\n"
    )
    return [f"--config={config}"]


@pytest.fixture(scope="module")
def uninterrupted(overrides, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("processes") / "whole"
    cluster = Cluster(workdir, 1, overrides)
    assert cluster.wait() == [0], cluster.log(0)[-2000:]
    return clusters.losses(workdir)


def test_hosts_that_do_not_share_the_workdir_are_refused_at_the_start(overrides, tmp_path):
    cluster = Cluster(tmp_path / "host{}", 2, overrides)
    try:
        assert cluster.wait(120) == [2, 2]
    finally:
        cluster.stop()
    for number in (0, 1):
        (sentence,) = [line for line in cluster.log(number).splitlines() if line.startswith("seed_jax: ")]
        assert "not visible on host 1" in sentence
    assert not list(tmp_path.glob("host*/checkpoints"))


def test_a_chunk_that_one_host_cannot_read_makes_all_fall_back(overrides, uninterrupted, tmp_path):
    """Bit rot in the shard of one host: the other could have read its own."""
    workdir = tmp_path / "run"
    first = Cluster(workdir, 2, [*overrides, "--config.mesh.fsdp=8"])
    try:
        assert first.wait() == [0, 0], first.log(0)[-2000:]
        *_, previous, newest = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
        stored = workdir / f"checkpoints/{newest}/params/ocdbt.process_1"
        shard = max(stored.rglob("d/*"), key=lambda path: path.stat().st_size)
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
        again = Cluster(workdir, 2, [*overrides, "--config.mesh.fsdp=8"])
        assert again.wait() == [0, 0], again.log(0)[-2000:]
    finally:
        first.stop()
    for number in (0, 1):
        assert "Skipping checkpoint" in again.log(number)
        assert f"Resuming from step {previous}" in again.log(number)
    found = clusters.losses(workdir)
    np.testing.assert_allclose(list(found.values()), list(uninterrupted.values()), atol=1e-5)


def test_killed_processes_are_named_and_fewer_go_on_with_the_same_losses(overrides, uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    four = Cluster(workdir, 4, overrides)
    try:
        four.wait_for_step(5)
        four.kill(2)
        began = time.monotonic()
        codes = four.wait(limit=60)
        # The others need not wait for JAX's own 100 s.
        assert time.monotonic() - began < 40
    finally:
        four.stop()
    assert codes[2] == -9
    assert all(code not in (0, 2, 75) for code in codes)
    assert any(clusters.names_process(four.log(number), 2) for number in (0, 1, 3))
    two = Cluster(workdir, 2, overrides)
    try:
        two.wait_for_step(8)
        two.kill(0)  # the one that coordinates
        assert two.wait(limit=60)[1] not in (0, 2, 75)
    finally:
        two.stop()
    # JAX ends the other at once in its own words; which host they are about was said before.
    assert "Host 0 (localhost:" in two.log(1)
    assert clusters.names_process(two.log(1), 0)
    assert "Resuming from step 3" in two.log(0)
    one = Cluster(workdir, 1, overrides)
    assert one.wait() == [0], one.log(0)[-2000:]
    found = clusters.losses(workdir)
    assert list(found) == list(uninterrupted) == list(range(1, STEPS + 1))
    # 1e-5: processes add float32 numbers in another order than devices of one process.
    np.testing.assert_allclose(list(found.values()), list(uninterrupted.values()), atol=1e-5)
    seconds = json.loads((workdir / "goodput.json").read_text())["seconds"]
    assert seconds["recomputed"] > 0
    assert seconds["downtime"] > 0

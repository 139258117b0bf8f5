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
    assert cluster.wait() == [0], cluster.said(0)[-2000:]
    return clusters.losses(workdir)


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
    assert any(clusters.names(four.said(number), 2) for number in (0, 1, 3))
    two = Cluster(workdir, 2, overrides)
    try:
        two.wait_for_step(8)
        two.kill(0)  # the one that coordinates
        assert two.wait(limit=60)[1] not in (0, 2, 75)
    finally:
        two.stop()
    # JAX ends the other at once in its own words; which host they are about was said before.
    assert "Host 0 (localhost:" in two.said(1)
    assert clusters.names(two.said(1), 0)
    assert "Resuming from step 3" in two.said(0)
    one = Cluster(workdir, 1, overrides)
    assert one.wait() == [0], one.said(0)[-2000:]
    found = clusters.losses(workdir)
    assert list(found) == list(uninterrupted) == list(range(1, STEPS + 1))
    # 1e-5: processes add float32 numbers in another order than devices of one process.
    np.testing.assert_allclose(list(found.values()), list(uninterrupted.values()), atol=1e-5)
    seconds = json.loads((workdir / "goodput.json").read_text())["seconds"]
    assert seconds["recomputed"] > 0
    assert seconds["downtime"] > 0

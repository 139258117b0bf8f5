"""Options of the loop, each in a short run on the fake devices."""

import dataclasses
import json
import math
import os
import signal
import sys
import time

import numpy as np
import pytest
from etils import epath

from configs import pretrain
from seed_jax.checkpoint import model_dir
from seed_jax.data.shards.records import Record
from seed_jax.errors import UserError
from seed_jax.train import loop
from seed_jax.train.runtime import checkpointing, workdir
from tests.data.batches import mixtures
from tests.support import golden


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    rng = np.random.default_rng(0)
    records = [Record(f"f/{n}", "f", (rng.integers(0, 128, 32).astype(np.uint16), f"dog {n}"), {}) for n in range(20)]
    return mixtures.write(tmp_path_factory.mktemp("options") / "pairs", records)


def config_for(shards, **changes):
    config = pretrain.get_config("tiny")
    config.data.demo = False
    config.data.vocabulary = str(golden.path("text_tokenizer/tokenizer"))
    part = {"path": str(shards), "task": "image_text_pair", "weight": 1.0, "params": {"max_length": 64}}
    with config.unlocked():
        config.data.parts = (part,)
    config.steps, config.log_every, config.checkpoint.every_steps = 4, 1, 100
    config.data.batch_size, config.data.sequence_length = 8, 64
    config.update_from_flattened_dict(changes)
    return config


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_trace_and_norms_by_layer_on_request(shards, tmp_path):
    loop.run(config_for(shards, **{"profile.steps": "2-3", "layer_norms": True}), tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    row = rows(tmp_path)[-1]
    layers = [row[f"grad_norm/layers/{layer:02d}"] for layer in range(2)]
    others = [value for name, value in row.items() if name.startswith("grad_norm/") and "layers" not in name]
    # Norms of parts make up the norm of the whole.
    assert math.hypot(*layers, *others) == pytest.approx(row["grad_norm"], rel=1e-5)
    assert row["param_norm/embed_tokens"] > 0
    assert "HloModule" in (tmp_path / "step.hlo.txt").read_text()[:100]


def test_the_books_go_on_over_a_restart(shards, tmp_path):
    loop.run(config_for(shards, steps=2), tmp_path)
    first = json.loads((tmp_path / "goodput.json").read_text())
    loop.run(config_for(shards), tmp_path)
    second = json.loads((tmp_path / "goodput.json").read_text())
    assert second["seconds"]["productive"] > first["seconds"]["productive"] > 0
    assert second["seconds"]["compile"] > first["seconds"]["compile"] > 0
    assert second["seconds"]["lost"] == 0
    assert 0 < rows(tmp_path)[-1]["goodput"] < 1


def test_a_loss_that_is_not_finite_ends_the_run_at_its_step(shards, tmp_path):
    """At a learning rate no number survives; steps are looked at one by one, reports or not."""
    changes = {"optimizer.peak_lr": 1e38, "optimizer.clip_norm": 0.0, "optimizer.warmup_ratio": 0.0, "steps": 12}
    with pytest.raises(UserError, match=r"at step \d+; nothing is saved of it \(the last good is \d\)") as error:
        loop.run(config_for(shards, log_every=12, **changes, **{"checkpoint.every_steps": 1}), tmp_path)
    assert "guard.nonfinite=skip" in str(error.value)
    saved = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert max(saved) < int(str(error.value).split("at step ")[1].split(";")[0])


def test_a_batch_that_is_not_finite_is_skipped_on_request(shards, tmp_path, monkeypatch):
    """A poisoned step 2: the run goes on as if it had not been."""
    changes = {"guard.nonfinite": "skip", "optimizer.moments": "bfloat16"}

    place, count = loop.sharding.place, [0]

    def bad_place(rows, cut, batch_size):
        count[0] += 1
        if count[0] == 2:
            rows = {**rows, "loss_mask": np.full_like(rows["loss_mask"], np.nan)}
        return place(rows, cut, batch_size)

    monkeypatch.setattr(loop.sharding, "place", bad_place)
    loop.run(config_for(shards, **changes), tmp_path)
    found = rows(tmp_path)
    assert [row["skipped_steps"] for row in found] == [0, 1, 1, 1]
    assert found[1]["grad_norm"] is None
    assert all(math.isfinite(row["loss"]) for row in found[2:])


def test_it_saves_by_minutes_too(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    config = pretrain.get_config("tiny")
    config.steps, config.log_every, config.checkpoint.every_steps, config.checkpoint.every_minutes = 100, 5, 40, 2.0
    due, saved = checkpointing.Schedule(config), []
    for step in range(1, 101):
        clock[0] += 10
        if due.due(step):
            saved.append(step)
    # Every 120 s, looked at every five steps; counted anew from every save.
    assert saved == [15, 30, 40, 55, 70, 80, 95, 100]


def test_sigterm_after_the_last_step_is_not_overlooked(shards, tmp_path, monkeypatch):
    """Otherwise a recipe would begin its next stage, and have lost the signal."""
    built = loop.registry.build

    def ended(config, folder):
        stage = built(config, folder)
        return dataclasses.replace(stage, finish=lambda *of: (os.kill(os.getpid(), signal.SIGTERM), stage.finish(*of)))

    monkeypatch.setattr(loop.registry, "build", ended)
    with pytest.raises(SystemExit) as stopped:
        loop.run(config_for(shards), tmp_path)
    assert stopped.value.code == loop.EXIT_PREEMPTED
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guard.nonfinite": "ignore"}, "guard.nonfinite is 'ignore', expected raise or skip"),
        ({"guard.spike": -1.0}, "guard.spike is -1.0"),
        ({"optimizer.moments": "int8"}, "optimizer.moments is 'int8'"),
        ({"optimizer.moments": "bfloat16", "optimizer.b2": 0.999}, "optimizer.b2 is 0.999, expected at most 0.99"),
        ({"profile.steps": "9-3"}, "profile.steps is '9-3'"),
        ({"wandb.project": "seed"}, r"pip install 'seed-jax\[wandb\]'"),
        ({"model.attention": "flash"}, "Unknown attention 'flash'"),
    ],
)
def test_bad_options_are_refused(shards, tmp_path, changes, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=message):
        loop.run(config_for(shards, **changes), tmp_path)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_run_in_a_bucket_resumes_like_one_in_a_folder(shards, tmp_path, monkeypatch):
    """Buckets are reached through epath alone; here it leads to a local folder, by the ways a bucket is treated."""
    monkeypatch.setattr(loop.workdirs, "place", epath.Path)
    bucket = epath.Path(tmp_path / "bucket")
    loop.run(config_for(shards, steps=2), bucket)
    loop.run(config_for(shards), bucket)
    monkeypatch.undo()
    # Stopped at the same step: the number of steps is a constant of the program, which may round otherwise.
    loop.run(config_for(shards, steps=2), tmp_path / "folder")
    loop.run(config_for(shards), tmp_path / "folder")
    in_bucket, in_folder = rows(tmp_path / "bucket"), rows(tmp_path / "folder")
    assert [row["loss"] for row in in_bucket] == [row["loss"] for row in in_folder]
    assert model_dir.load(tmp_path / "bucket", "llama").config["sizes"]
    assert not list((tmp_path / "bucket").glob("lock*"))


def test_a_bucket_in_use_is_refused_until_its_mark_is_old(tmp_path):
    bucket = epath.Path(tmp_path)
    (bucket / "lock-0").write_text(f"process 1 on node-b at {time.time()}")
    with pytest.raises(UserError, match="in use by process 1 on node-b"), workdir.locked(bucket):
        pass
    (bucket / "lock-0").write_text(f"process 1 on node-b at {time.time() - 1000}")
    with workdir.locked(bucket):
        assert "node-b" not in (bucket / "lock-0").read_text()
    assert not (bucket / "lock-0").exists()

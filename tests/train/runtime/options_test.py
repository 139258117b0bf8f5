"""What the loop does around steps, in short runs of the toy stage on the fake devices."""

import json
import math
import os
import resource
import shutil
import signal
import sys
import time

import flax.linen as nn
import jax
import pytest
from etils import epath

from seed_jax.errors import UserError
from seed_jax.train import loop
from seed_jax.train.runtime import checkpointing, workdir
from seed_jax.train.runtime.goodput import Goodput
from seed_jax.train.runtime.metric_writer import MetricWriter
from seed_jax.train.runtime.watchdog import EXIT_PREEMPTED, EXIT_STUCK
from tests.support import checkpoints
from tests.train.toy import ToyBatches, ToyStage, toy_config


def train(directory, **changes):
    config = toy_config(**changes)
    return loop.train(config, directory, ToyStage(config))


def rows(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def losses(directory):
    return [row["loss"] for row in rows(directory) if "loss" in row]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was never stopped."""
    directory = tmp_path_factory.mktemp("finished")
    train(directory, steps=6)
    return directory


def test_a_run_leaves_its_config_program_metrics_and_model(finished):
    assert [row["step"] for row in rows(finished)] == [1, 2, 3, 4, 5, 6]
    assert losses(finished)[-1] < losses(finished)[0]
    assert "HloModule" in (finished / "step.hlo.txt").read_text()[:100]
    assert json.loads((finished / "run.json").read_text())["optimizer"]["peak_lr"] == 1e-2
    assert json.loads((finished / "model/config.json").read_text())["kind"] == "toy"
    assert list((finished / "tensorboard").iterdir())
    assert "mfu" not in rows(finished)[-1]  # a CPU's peak is not known
    assert rows(finished)[-1]["rows_per_second"] > 0


def test_a_resumed_run_continues_exactly(finished, tmp_path):
    train(tmp_path, steps=3, **{"optimizer.schedule": "epochs"})
    train(tmp_path, steps=6, **{"optimizer.schedule": "epochs"})
    train(tmp_path / "whole", steps=6, **{"optimizer.schedule": "epochs"})
    assert losses(tmp_path) == losses(tmp_path / "whole")


def test_a_complete_run_does_nothing_but_finish(finished):
    before = rows(finished)
    config = toy_config(steps=6)
    stage = ToyStage(config)
    loop.train(config, finished, stage)
    assert stage.finished
    assert rows(finished) == before


def test_accumulated_microbatches_equal_the_whole_batch(finished, tmp_path):
    train(tmp_path, steps=6, **{"optimizer.accumulation": 2, "mesh.fsdp": 4, "mesh.tensor": 2})
    assert losses(tmp_path) == pytest.approx(losses(finished), rel=1e-5)


def test_a_trace_and_norms_by_layer_on_request(tmp_path):
    train(tmp_path, **{"profile.steps": "2-3", "layer_norms": True})
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    row = rows(tmp_path)[-1]
    parts = [value for name, value in row.items() if name.startswith("grad_norm/")]
    assert math.hypot(*parts) == pytest.approx(row["grad_norm"], rel=1e-5)
    assert row["param_norm/layer"] > 0


def test_evaluators_run_every_so_many_steps_and_at_the_end(tmp_path):
    train(tmp_path, steps=5, **{"evaluate.data": "x", "evaluate.every_steps": 2})
    assert [row["step"] for row in rows(tmp_path) if "eval/norm" in row] == [2, 4, 5]


def test_goodput_continues_over_a_restart(tmp_path):
    train(tmp_path, steps=2)
    first = json.loads((tmp_path / "goodput.json").read_text())["seconds"]
    train(tmp_path)
    second = json.loads((tmp_path / "goodput.json").read_text())["seconds"]
    assert second["productive"] > first["productive"] > 0
    assert second["compile"] > first["compile"] > 0
    assert second["recomputed"] == 0
    assert 0 < rows(tmp_path)[-1]["goodput"] < 1


def test_a_loss_that_is_not_finite_ends_the_run_at_its_step(tmp_path):
    """Steps are checked one by one, whether they are reported or not."""
    with pytest.raises(UserError, match=r"at step 3; nothing is saved of it \(the last good is 2\)") as error:
        train(tmp_path, steps=12, log_every=12, poison_step=3, **{"checkpoint.every_steps": 1})
    assert "guard.nonfinite=skip" in str(error.value)
    assert max(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == 2


def test_a_batch_that_is_not_finite_is_skipped_on_request(tmp_path):
    train(tmp_path, poison_step=2, **{"guard.nonfinite": "skip", "optimizer.moments": "bfloat16"})
    assert [row["skipped_steps"] for row in rows(tmp_path)] == [0, 1, 1, 1]
    assert rows(tmp_path)[1]["grad_norm"] is None
    assert all(math.isfinite(loss) for loss in losses(tmp_path)[2:])


def test_checkpoints_by_minutes(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    config = toy_config(steps=100, log_every=5, **{"checkpoint.every_steps": 40, "checkpoint.every_minutes": 2.0})
    schedule, saved = checkpointing.CheckpointSchedule(config), []
    for step in range(1, 101):
        clock[0] += 10
        if schedule.is_due(step):
            saved.append(step)
    # Every 120 s, checked every five steps; counted from every save.
    assert saved == [15, 30, 40, 55, 70, 80, 95]


def test_sigterm_saves_the_current_step(finished, tmp_path, monkeypatch):
    following = ToyBatches.__next__

    def interrupted(self):
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return following(self)

    with monkeypatch.context() as patch:
        patch.setattr(ToyBatches, "__next__", interrupted)
        with pytest.raises(SystemExit) as stopped:
            train(tmp_path, steps=6)
    assert stopped.value.code == EXIT_PREEMPTED
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]
    train(tmp_path, steps=6)
    assert losses(tmp_path) == losses(finished)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_sigterm_after_the_last_step_is_not_overlooked(tmp_path):
    """Otherwise a recipe would start its next stage."""
    config = toy_config()

    class Interrupted(ToyStage):
        def finish(self, variables, workdir):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as stopped:
        loop.train(config, tmp_path, Interrupted(config))
    assert stopped.value.code == EXIT_PREEMPTED
    assert len(losses(tmp_path)) == 4


@pytest.mark.parametrize(
    ("changes", "key_words"),
    [
        ({"guard.nonfinite": "ignore"}, "guard.nonfinite is 'ignore'.*raise, skip"),
        ({"guard.spike": -1.0}, "guard.spike is -1.0"),
        ({"optimizer.moments": "int8"}, "optimizer.moments is 'int8'"),
        ({"optimizer.moments": "bfloat16", "optimizer.b2": 0.999}, "optimizer.b2 is 0.999, expected at most 0.99"),
        ({"profile.steps": "9-3"}, "profile.steps is '9-3'"),
        ({"profile.steps": "3-9"}, "only 4 steps"),
        ({"compiler": "fast"}, "compiler is 'fast'.*name=value"),
        ({"steps": 0, "optimizer.b1": 2.0}, "steps is 0.*optimizer.b1 is 2.0"),
        ({"wandb.project": "seed"}, r"pip install 'seed-jax\[wandb\]'"),
        ({"optimizer.accumulation": 3}, "batch_size is 8, expected a multiple of 24"),
        ({"mesh.tensor": 3}, "tensor 3"),
    ],
)
def test_bad_options_are_refused(tmp_path, changes, key_words, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=key_words):
        train(tmp_path, **changes)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert not list(tmp_path.rglob("checkpoints/*"))


def test_compiler_options_reach_the_compiler(tmp_path):
    with pytest.raises(Exception, match="xla_no_such_option"):
        train(tmp_path, compiler="xla_no_such_option=1")


def test_resuming_with_other_settings_says_what_changes(tmp_path, caplog):
    train(tmp_path)
    train(tmp_path, steps=6, **{"optimizer.peak_lr": 2e-2})
    assert "optimizer.peak_lr 0.01 -> 0.02" in caplog.text
    assert "steps 4 -> 6" in caplog.text
    assert "learning rate at step 4" in caplog.text
    assert json.loads((tmp_path / "run_001.json").read_text())["steps"] == 4
    assert json.loads((tmp_path / "run.json").read_text())["steps"] == 6
    with pytest.raises(UserError, match="step 6 is already done"):
        train(tmp_path, steps=5)


class LargeStage(ToyStage):
    """Four megabytes of frozen weights, half a megabyte on each device."""

    def _init(self, key):
        variables = super()._init(key)
        random = jax.random.normal(key, (512, 2048))  # which cannot be compressed
        table = nn.LogicallyPartitioned(random, ("embed", "mlp"))
        return variables | {"frozen": {**variables["frozen"], "table": table}}


@pytest.fixture
def limited_files():
    """A limit on the size of files fails like a full disk: in the middle of a write."""
    previous = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, previous[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, previous)
    signal.signal(signal.SIGXFSZ, ignored)


def test_a_checkpoint_that_cannot_be_written_ends_the_run_in_one_sentence(tmp_path, limited_files):
    config = toy_config(steps=3000, log_every=1, **{"checkpoint.every_steps": 2})
    with pytest.raises(UserError, match=r"checkpoint of step 2 could not be written: .*File too large") as error:
        loop.train(config, tmp_path, LargeStage(config))
    assert error.value.exit_code == 2  # starting again would not help
    assert "\n" not in str(error.value)
    assert checkpoints.next_start_keeps(tmp_path)


def test_a_workdir_in_use_is_tried_again_by_launchers(tmp_path):
    """Such as one whose run still saves after SIGTERM."""
    with workdir.locked(tmp_path), pytest.raises(UserError, match="in use") as error, workdir.locked(tmp_path):
        pass
    assert error.value.exit_code == EXIT_STUCK


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'"step"', b'{"step": "two"}', b"{}", b"[" * 9999])
def test_damaged_files_of_the_workdir_are_left_out_or_one_sentence(finished, tmp_path, content):
    for name in ("metrics.jsonl", "goodput.json", "run.json"):
        directory = tmp_path / name.partition(".")[0]
        shutil.copytree(finished, directory)
        (directory / name).write_bytes(content)
        if name == "run.json":
            with pytest.raises(UserError, match="restore"):
                train(directory, steps=6)
        else:
            train(directory, steps=6)
            Goodput(directory, first_step=6)
            MetricWriter(directory, first_step=6).close()


def test_a_run_in_a_bucket_resumes_like_one_in_a_directory(finished, tmp_path, monkeypatch):
    """Buckets are reached through epath alone; here it leads to a local directory in the ways a bucket is used."""
    with monkeypatch.context() as patch:
        patch.setattr(workdir, "resolve", epath.Path)
        bucket = epath.Path(tmp_path / "bucket")
        train(bucket, steps=6, **{"checkpoint.every_steps": 3})
        train(bucket, steps=6)
    assert losses(tmp_path / "bucket") == losses(finished)
    assert not list((tmp_path / "bucket").glob("lock*"))


def test_a_bucket_in_use_is_refused_and_a_stale_lock_taken_over(tmp_path, monkeypatch):
    bucket = epath.Path(tmp_path)
    lock = bucket / "lock-0"
    lock.write_text(f"process 1 on node-b at {time.time()}")
    monkeypatch.setattr(time, "sleep", lambda seconds: lock.write_text(f"process 1 on node-b at {time.time()}"))
    with pytest.raises(UserError, match="in use by process 1 on node-b"), workdir.locked(bucket):
        pass
    lock.write_text(f"process 1 on node-b at {time.time() - 1000}")
    with workdir.locked(bucket):
        assert "node-b" not in lock.read_text()
    assert not lock.exists()


@pytest.mark.parametrize("name", ["file:///tmp/run", "s3://bucket/run"])
def test_an_unsupported_workdir_is_refused(name):
    with pytest.raises(UserError, match="neither a local directory nor a bucket"):
        workdir.resolve(name)

"""The time of a run that was killed twice."""

import json

import pytest

from seed_jax.train.runtime.goodput import Goodput


def test_repeated_steps_count_as_recomputed(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("time.time", lambda: clock[0])
    first = Goodput(tmp_path, first_step=0)
    first.add("compile", 5.0)
    first.add("productive", 10.0)
    first.saved(4)
    first.add("productive", 6.0)
    first.write()  # and killed
    clock[0] += 20.0
    second = Goodput(tmp_path, first_step=4)
    assert second.seconds["productive"] == 10.0
    assert second.seconds["recomputed"] == 6.0
    assert second.seconds["downtime"] == 20.0
    second.add("productive", 9.0)
    second.write()
    assert second.share() == pytest.approx(19.0 / (5 + 19 + 6 + 20))
    from_scratch = Goodput(tmp_path, first_step=0)  # the checkpoints are gone: everything was for nothing
    assert (from_scratch.seconds["productive"], from_scratch.seconds["recomputed"]) == (0.0, 25.0)


def test_a_truncated_file_is_ignored(tmp_path):
    (tmp_path / "goodput.json").write_text(json.dumps({"seconds": {}})[:-3])
    assert sum(Goodput(tmp_path, first_step=3).seconds.values()) == 0

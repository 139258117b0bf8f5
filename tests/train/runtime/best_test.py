"""The best checkpoint, early stopping, and what evaluations show, in short runs of the toy stage."""

import json
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from seed_jax.checkpoint import model_dir
from seed_jax.errors import UserError
from seed_jax.train import loop
from seed_jax.train.config.common import CheckpointConfig
from seed_jax.train.runtime.metric_writer import MetricWriter
from seed_jax.train.stage import Evaluator, ShownSample
from tests.train.toy import ToyStage, toy_config

EVERY_STEP = {"evaluate.data": "x", "evaluate.every_steps": 1, "checkpoint.keep_last": 1}
KEEP_BEST = {**EVERY_STEP, "checkpoint.keep_best": "eval/score"}


class ScoredStage(ToyStage):
    """The toy stage with given scores of its evaluations."""

    scores = (3.0, 5.0, 4.0, 2.0, 1.0, 0.0)

    def evaluators(self):
        scores = iter(self.scores)
        sample = ShownSample("Q: what?\n\nA: <this>", (np.zeros((4, 6, 3), np.uint8),))
        return (Evaluator("eval", 1, lambda variables: {"score": next(scores)}, lambda: (sample,)),)


def train(directory, stage=ScoredStage, scores=None, **changes):
    config = toy_config(**changes)
    made = stage(config)
    if scores is not None:
        made.scores = scores
    return loop.train(config, directory, made)


def steps(directory):
    return sorted(int(path.name) for path in (directory / "checkpoints").iterdir())


def evaluated(directory):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [row["step"] for row in map(json.loads, lines) if "eval/score" in row]


def test_the_best_checkpoint_is_kept_and_loaded(tmp_path):
    last = train(tmp_path, steps=5, **KEEP_BEST)
    assert steps(tmp_path) == [2, 5]
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 2
    assert model_dir.params_path(tmp_path).parent.name == "2"
    kernel = model_dir.load(tmp_path).params["params"]["layer"]["kernel"]
    assert not np.array_equal(kernel, last["params"]["layer"]["kernel"])
    (tmp_path / "best.json").unlink()
    assert model_dir.params_path(tmp_path).parent.name == "5"


def test_a_resumed_run_remembers_the_best(tmp_path):
    train(tmp_path, steps=3, **KEEP_BEST)
    train(tmp_path, scores=(4.5, 4.9, 4.8), steps=5, **KEEP_BEST)
    assert steps(tmp_path) == [2, 5]
    train(tmp_path, scores=(6.0,), steps=6, **KEEP_BEST)
    assert steps(tmp_path) == [6]


def test_a_run_without_improvement_ends_early_and_stays_ended(tmp_path):
    train(tmp_path, steps=6, **KEEP_BEST, **{"evaluate.patience": 2})
    assert evaluated(tmp_path) == [1, 2, 3, 4]
    assert steps(tmp_path) == [2, 4]
    for patience in (2, 1):
        train(tmp_path, scores=(), steps=6, **KEEP_BEST, **{"evaluate.patience": patience})
        assert evaluated(tmp_path) == [1, 2, 3, 4]
    train(tmp_path, scores=(6.0, 5.0), steps=6, **KEEP_BEST, **{"evaluate.patience": 3})
    assert evaluated(tmp_path) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("name", "mode"), [("eval/loss", "min"), ("eval/loss_text", "min"), ("coco_caption/CIDEr", "max")]
)
def test_losses_are_better_when_lower(name, mode):
    assert CheckpointConfig(keep_best=name).mode == mode
    assert CheckpointConfig(keep_best=name, best_mode="max").mode == "max"


def test_a_metric_that_nothing_measures_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"keep_best.*eval/score"):
        train(tmp_path, **EVERY_STEP, **{"checkpoint.keep_best": "eval/loss"})
    with pytest.raises(UserError, match=r"keep_best.*vqav2.*eval"):
        train(tmp_path / "other", **EVERY_STEP, **{"checkpoint.keep_best": "vqav2/accuracy"})
    with pytest.raises(UserError, match=r"patience.*keep_best"):
        toy_config(**{"evaluate.patience": 2})


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"task": "coco_caption"}, r"tasks\[0\].data is empty"),
        ({"task": "coco_caption", "data": "d", "limits": 3}, "limits is not an option"),
        ({"task": "coco_caption", "data": "d", "name": "eval"}, "name of its own"),
        ({"task": "coco_caption", "data": "d", "decoding": {"beam": 2}}, "'beam', expected some of"),
        ({"task": "coco_caption", "data": "d", "decoding": {"beams": "2"}}, "beams='2', expected a value such as 1"),
    ],
)
def test_bad_tasks_are_refused_with_the_config(entry, words):
    with pytest.raises(UserError, match=words):
        toy_config(**{"evaluate.tasks": (entry,)})


def test_a_stage_without_a_language_model_runs_no_tasks(tmp_path):
    with pytest.raises(UserError, match=r"evaluate\.tasks needs a language model"):
        train(tmp_path, **{"evaluate.tasks": ({"task": "coco_caption", "data": "d"},)})


def events(directory):
    """Yield the values of TensorBoard's event files."""
    for path in directory.iterdir():
        content = path.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            yield from event_pb2.Event.FromString(content[12 : 12 + size]).summary.value
            content = content[16 + size :]


def test_samples_are_shown_in_tensorboard(tmp_path):
    train(tmp_path, steps=1, **EVERY_STEP)
    values = {value.tag: value for value in events(tmp_path / "tensorboard")}
    text = values["eval/sample_1/text_summary"].tensor.string_val[0].decode()
    assert "A: <this>" in text
    image = values["eval/sample_1/image_1"].image
    assert (image.height, image.width) == (4, 6)


def test_samples_are_logged_to_wandb(tmp_path, monkeypatch):
    logged = []
    stub = types.SimpleNamespace(
        init=lambda **options: types.SimpleNamespace(
            log=lambda values, step: logged.append((step, values)), finish=lambda: None
        ),
        Image=lambda pixels, caption: (pixels.shape, caption),
        Html=lambda text: text,
    )
    monkeypatch.setitem(sys.modules, "wandb", stub)
    writer = MetricWriter(tmp_path, wandb_project="p")
    writer.write_samples(7, "task", [ShownSample("drawn", (np.zeros((2, 2, 3), np.uint8),)), ShownSample("<b>")])
    writer.close()
    ((step, values),) = logged
    assert step == 7
    assert values == {"task/sample_1": [((2, 2, 3), "drawn")], "task/sample_2": "<pre>&lt;b&gt;</pre>"}


def test_an_evaluation_that_is_no_number_is_never_the_best(tmp_path):
    train(tmp_path, scores=(1.0, jnp.nan, 0.5), steps=3, **KEEP_BEST)
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 1

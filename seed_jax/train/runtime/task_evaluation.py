"""Tasks of `seed-jax eval` as evaluators: `evaluate.tasks` answers with the model that is being trained."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from seed_jax.errors import UserError
from seed_jax.evaluation.eval_model import EvalModel
from seed_jax.evaluation.runner import RunOptions, TaskRun, run_task
from seed_jax.evaluation.task import DataOptions, Task, drawn_image_path
from seed_jax.evaluation.tasks import find_task
from seed_jax.files import AnyPath
from seed_jax.images import load
from seed_jax.train.config import TrainConfig
from seed_jax.train.config.evaluation import TrainingTaskConfig, training_tasks
from seed_jax.train.stage import Evaluator, ShownSample, Stage
from seed_jax.typing import Tree

DIRECTORY = "evaluations"  # of the workdir: files of the latest evaluation of each task
_LONGEST_SIDE = 256  # pixels of shown images


def task_evaluators(config: TrainConfig, stage: Stage, workdir: AnyPath) -> tuple[Evaluator, ...]:
    """Return an evaluator for each entry of `evaluate.tasks`.

    Args:
        config: the run's configuration.
        stage: what is trained.
        workdir: directory of the run.

    Raises:
        UserError: a task does not exist, its data is unusable, or the stage trains no model that answers.
    """
    entries = {
        name: entry
        for name, entry in training_tasks(config.evaluate.tasks).items()
        if entry.every_steps or config.evaluate.every_steps
    }
    if not entries:
        return ()
    if jax.process_count() > 1:
        raise UserError(
            "evaluate.tasks needs all devices in one process: evaluate the checkpoints of a run on several hosts with"
            " `seed-jax eval`, and leave evaluate.tasks empty."
        )
    make_model = stage.eval_model()
    return tuple(_evaluator(name, entry, config, make_model, workdir) for name, entry in entries.items())


def _evaluator(
    name: str, entry: TrainingTaskConfig, config: TrainConfig, make_model: Callable[[Tree], EvalModel], workdir: AnyPath
) -> Evaluator:
    task, data = find_task(entry.task), DataOptions(**entry.data_options())
    _check(name, task, data, config)
    options = RunOptions(entry.batch_size, entry.limit or None, max_bad=entry.max_bad, decoding=dict(entry.decoding))
    shown: list[ShownSample] = []

    def run(variables: Tree) -> dict[str, float]:
        with _outside_mesh(), _fresh_directory(workdir, name) as directory:
            model = make_model(variables)
            result = run_task(task, data, directory, options, {"stage": config.stage}, lambda: model)
            assert result is not None  # there is one shard
            shown[:] = _samples(result, entry.samples)
        return dict(result.results["metrics"])

    return Evaluator(name, entry.every_steps or config.evaluate.every_steps, run, lambda: tuple(shown))


def _check(name: str, task: Task, data: DataOptions, config: TrainConfig) -> None:
    """Fail before training instead of at the first evaluation."""
    evaluate = config.evaluate
    if task.needs_clip and not evaluate.clip:
        raise UserError(f"evaluate.tasks: {name} compares images by CLIP: name its folder in evaluate.clip.")
    if task.draws and not evaluate.decoder:
        raise UserError(f"evaluate.tasks: {name} draws images: name an image decoder in evaluate.decoder.")
    task.configured(data).read(data)


@contextlib.contextmanager
def _outside_mesh() -> Iterator[None]:
    """Run ordinary programs inside the loop's mesh: the models of tasks bring a mesh of their own or none."""
    with jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ())), nn.logical_axis_rules(()):
        yield


@contextlib.contextmanager
def _fresh_directory(workdir: AnyPath, name: str) -> Iterator[Path]:
    if not isinstance(workdir, Path):  # a bucket keeps no files of tasks
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary) / name
        return
    directory = workdir / DIRECTORY / name
    shutil.rmtree(directory, ignore_errors=True)
    yield directory


def _samples(run: TaskRun, count: int) -> list[ShownSample]:
    shown = []
    for sample, prediction in list(zip(run.samples, run.predictions, strict=True))[:count]:
        described = {"id": sample.id, **run.task.describe(sample, prediction)}
        text = "\n\n".join(f"{key}: {value}" for key, value in described.items() if value)
        images = sample.load_images()[:1]
        drawn = drawn_image_path(run.directory, sample.id)
        if drawn.is_file():
            images.append(load(drawn))
        shown.append(ShownSample(text, tuple(map(_pixels, images))))
    return shown


def _pixels(image: Any) -> np.ndarray:
    small = image.convert("RGB")
    small.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    return np.asarray(small)

"""Run several tasks on one model and write their report: what `seed-jax eval` and evaluation configs do."""

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from seed_jax import sharding
from seed_jax.errors import UserError
from seed_jax.evaluation.eval_model import EvalModel
from seed_jax.evaluation.fingerprint import describe_model
from seed_jax.evaluation.report.files import write_report
from seed_jax.evaluation.runner import RunOptions, TaskRun, run_task
from seed_jax.evaluation.task import DataOptions, Task
from seed_jax.inference import memory_plan
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.memory_plan import Workload
from seed_jax.inference.seed_llama import MAX_IMAGE_BATCH, LoadConfig, SeedLlama


@dataclasses.dataclass(frozen=True)
class PlannedTask:
    """A task as it will be run.

    Attributes:
        name: of the directory below --out, by default the task's.
        task: the task.
        data: where its data is.
        options: how it is run.
    """

    name: str
    task: Task
    data: DataOptions
    options: RunOptions

    @property
    def sampling_params(self) -> SamplingParams:
        return dataclasses.replace(self.task.sampling_params, **self.options.decoding)


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """The model under evaluation.

    Attributes:
        load: its directories and dtypes.
        clip: folder of a Hugging Face CLIP model, for tasks that compare images.
        text_vocabulary: vocab.txt of bert-base-uncased, for retrieval with an imported image tokenizer.
        memory: refuse to load what needs more, such as "16GiB"; None takes the device's memory.
        show_memory_plan: log how much memory each part needs.
        tensor_parallel: devices that share the weights of one copy of the model; the copies split the samples.
    """

    load: LoadConfig
    clip: Path | None = None
    text_vocabulary: Path | None = None
    memory: str | None = None
    show_memory_plan: bool = False
    tensor_parallel: int = 1


def run_tasks(planned: Sequence[PlannedTask], model: ModelOptions, out: Path) -> list[TaskRun] | None:
    """Run tasks, each in a directory of its own, and write the report.

    Args:
        planned: the tasks.
        model: the model.
        out: directory of everything that is written.

    Returns:
        The finished runs; None as long as other shards have predictions missing.

    Raises:
        UserError: a task's data or the model is unusable, or `out` holds another run.
    """
    config = model.load.resolve()
    draws = any(one.task.draws for one in planned)
    if config.decoder is None and draws:
        raise UserError(f"{config.model} names no image decoder, which tasks that draw need: give one with --decoder.")
    if model.clip is None and any(one.task.needs_clip for one in planned):
        raise UserError("These tasks compare images by CLIP: give the folder of a CLIP model with --clip.")
    mesh = _mesh(model.tensor_parallel)

    @functools.cache
    def open_model() -> EvalModel:
        _check_memory(planned, model, config, draws)
        logging.info("loading %s ...", config.model)
        loaded = SeedLlama.from_config(config, mesh=mesh)
        return EvalModel(loaded, model.clip, config.tokenizer, model.text_vocabulary)

    description = describe_model(config, model.clip)
    runs = [run_task(one.task, one.data, out / one.name, one.options, description, open_model) for one in planned]
    finished = [run for run in runs if run is not None]
    if len(finished) < len(runs):
        return None
    page = write_report(out, finished)
    for run in finished:
        print_results(run.results)
    logging.info("The report is %s.", page)
    return finished


def print_results(results: dict[str, Any]) -> None:
    """Print the scores of a task in one line."""
    values = "  ".join(f"{name} {value:.2f}" for name, value in results["metrics"].items())
    left_out = f", {len(results['bad'])} left out" if results["bad"] else ""
    print(f"{results['name']} ({results['scored']} samples{left_out}): {values or 'not scored'}")


def _mesh(tensor_parallel: int) -> jax.sharding.Mesh | None:
    """Return the mesh over this process's devices: copies of the model that split each batch; None for one device."""
    devices = jax.local_devices()
    if tensor_parallel < 1 or len(devices) % tensor_parallel:
        raise UserError(
            f"--tensor-parallel is {tensor_parallel}, expected a divisor of the number of devices, {len(devices)}."
        )
    return sharding.make_mesh({"replica": -1, "tensor": tensor_parallel}, devices) if len(devices) > 1 else None


def _check_memory(planned: Sequence[PlannedTask], model: ModelOptions, config: LoadConfig, draws: bool) -> None:
    prompts = max(one.options.batch_size for one in planned)
    workload = Workload.covering([one.sampling_params for one in planned], prompts)
    memory_plan.check_directories(
        config, workload, num_images=MAX_IMAGE_BATCH, draws=draws, limit=model.memory, show=model.show_memory_plan
    )

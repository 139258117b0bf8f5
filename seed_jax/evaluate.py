"""Run evaluations that a config describes: `seed-jax eval --config` and `python -m seed_jax.main --config=eval`."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import ml_collections

from seed_jax.errors import UserError
from seed_jax.train.config.evaluation import EvaluatedModelConfig, EvaluationConfig, TaskConfig
from seed_jax.train.config.schema import parse

# The evaluation side, which imports JAX, is imported inside functions: errors in configs are reported without it.


def parse_config(config: ml_collections.ConfigDict) -> tuple[EvaluationConfig, dict[str, TaskConfig]]:
    """Parse a config and its tasks, and check that the tasks exist.

    Raises:
        UserError: something in the config is wrong.
    """
    from seed_jax.evaluation.tasks import find_task

    parsed = parse(EvaluationConfig, config)
    tasks = {}
    for name, options in parsed.tasks.items():
        task = tasks[name] = parse(TaskConfig, options, f"tasks.{name}.")
        find_task(task.task or name)
        if Path(name).name != name:
            raise UserError(f"tasks has the entry {name!r}, which names a directory: expected a name without '/'.")
        if not task.data:
            raise UserError(f"tasks.{name}.data is empty: name the directory of the official files.")
    return parsed, tasks


def run(
    config: ml_collections.ConfigDict,
    out: str | Path,
    *,
    only: Collection[str] = (),
    shard: str | None = None,
    show_memory_plan: bool = False,
) -> None:
    """Run the tasks of a config, or what remains of them, and write the report.

    Args:
        config: options, see `EvaluationConfig`.
        out: directory of everything that is written.
        only: names of the entries of `tasks` to run; empty runs all.
        shard: "I/N" predicts every N-th sample only, from the I-th on; None: the processes of a job split the samples.
        show_memory_plan: log how much memory the model needs.

    Raises:
        UserError: bad options, unusable data or model, or a directory with another run.
    """
    parsed, tasks = parse_config(config)
    if "://" in str(out):
        raise UserError(f"{out} is no local directory, which evaluations need for what they write: name one.")
    unknown = [name for name in only if name not in tasks]
    if unknown:
        raise UserError(f"The config has no task {unknown[0]}: expected some of {', '.join(tasks)}.")
    chosen = {name: task for name, task in tasks.items() if not only or name in only}
    if not chosen:
        raise UserError("The config names no tasks: add some to `tasks`.")
    if not parsed.model.directory:
        raise UserError("model.directory is empty: name the model with --model or --set model.directory=DIR.")

    import jax

    from seed_jax.evaluation.runner import RunOptions, Shard
    from seed_jax.evaluation.session import PlannedTask, run_tasks
    from seed_jax.evaluation.task import DataOptions
    from seed_jax.evaluation.tasks import find_task

    part = Shard(jax.process_index() + 1, jax.process_count()) if shard is None else Shard.parse(shard)
    planned = [
        PlannedTask(
            name,
            find_task(task.task or name),
            DataOptions(**task.data_options(Path(parsed.data_root))),
            RunOptions(task.batch_size, task.limit or None, part, task.max_bad, dict(task.decoding)),
        )
        for name, task in chosen.items()
    ]
    run_tasks(planned, _model_options(parsed.model, show_memory_plan), Path(out))


def _model_options(config: EvaluatedModelConfig, show_memory_plan: bool) -> Any:
    from seed_jax.evaluation.session import ModelOptions
    from seed_jax.inference.seed_llama import LoadConfig

    load = LoadConfig(
        Path(config.directory),
        _path(config.tokenizer),
        _path(config.decoder),
        config.style or None,
        config.dtype or None,
        config.quantize or None,
        config.quantize_vit or None,
    )
    return ModelOptions(
        load,
        _path(config.clip),
        _path(config.text_vocabulary),
        config.memory or None,
        show_memory_plan,
        config.tensor_parallel,
    )


def _path(text: str) -> Path | None:
    return Path(text) if text else None

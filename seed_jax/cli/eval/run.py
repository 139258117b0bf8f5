"""`seed-jax eval [run] TASK...`: run tasks on a model, those of the command line or of a config."""

import argparse
from pathlib import Path
from typing import Any

from seed_jax.cli.generation_options import add_model_options
from seed_jax.errors import UserError
from seed_jax.inference.generation.sampling_params import SamplingParams

# Options that replace the decoding of the paper's protocol.
_DECODING = ("max_new_tokens", "beams", "length_penalty", "temperature", "top_p", "seed")
# Options of the command line -> options of every task; None leaves a task's own.
_TASK = ("annotations", "questions", "images", "split", "frames", "wordnet", "limit", "max_bad", "batch_size")
_MODEL = ("tokenizer", "decoder", "clip", "text_vocabulary", "style", "dtype", "quantize", "quantize_vit", "memory")
_SINGLE_TASK_FILES = ("annotations", "questions", "split")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command `run`."""
    parser = subparsers.add_parser(
        "run",
        help="run tasks on a model; the word may be left out",
        description="Run tasks on a model. Run the same command again to resume.",
    )
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="task; see --list")
    add_options(parser)
    parser.set_defaults(run=run)


def add_list_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command `list`."""
    text = "list the tasks with the papers' numbers"
    parser = subparsers.add_parser("list", help=text, description=f"L{text[1:]}.")
    parser.set_defaults(run=lambda args: list_tasks())


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `run`."""
    parser.add_argument("--list", action="store_true", help="list the tasks with the papers' numbers")
    config = parser.add_argument_group("config")
    config.add_argument(
        "--config", metavar="CONFIG", help="config file or packaged config with tasks and settings, e.g. eval:paper"
    )
    config.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change an option of the config; may be repeated",
    )
    add_model_options(parser, required=False)
    parser.add_argument("--decoder", type=Path, metavar="DIR", help="image decoder of tasks that draw")
    parser.add_argument("--clip", type=Path, metavar="DIR", help="Hugging Face CLIP model of tasks that compare images")
    parser.add_argument(
        "--text-vocabulary", type=Path, metavar="FILE", help="vocab.txt of bert-base-uncased, for retrieval"
    )
    parser.add_argument(
        "--tensor-parallel",
        type=int,
        metavar="N",
        help="devices that share the weights of one copy of the model; the copies split the samples (default: 1)",
    )
    data = parser.add_argument_group("data")
    data.add_argument("--data", type=Path, metavar="DIR", help="directory of the official files; of a config its root")
    data.add_argument("--annotations", type=Path, metavar="FILE", help="if it is not found by its official name")
    data.add_argument("--questions", type=Path, metavar="FILE", help="if it is not found by its official name")
    data.add_argument("--images", type=Path, metavar="DIR", help="images or videos (default: --data)")
    data.add_argument("--split", metavar="NAME", help="split of the dataset (default: the one of the paper)")
    data.add_argument("--frames", type=int, metavar="N", help="frames per video (default: the task's)")
    data.add_argument(
        "--wordnet", type=Path, metavar="DIR", help="WordNet's database files (index.noun, ...), for WUPS"
    )
    data.add_argument("--limit", type=int, metavar="N", help="use the first N samples only")
    data.add_argument("--shard", metavar="I/N", help="predict every N-th sample only, from the I-th on")
    data.add_argument(
        "--max-bad", type=int, metavar="N", help="samples that may be left out as unreadable (default: 0)"
    )
    decoding = parser.add_argument_group("decoding (default: the task's protocol)")
    for name in _DECODING:
        kind = type(getattr(SamplingParams(), name))
        decoding.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help="replaces the task's")
    decoding.add_argument("--batch-size", type=int, metavar="N", help="samples at a time (default: 8)")
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, metavar="DIR", help="directory for predictions, results and report")


def list_tasks() -> None:
    """Print the tasks with the papers' numbers."""
    from seed_jax.evaluation.tasks import all_tasks  # late: `--help` does not wait for NumPy

    for name, task in sorted(all_tasks().items()):
        numbers = ", ".join(f"{number.model} {number.value:g} {number.metric}" for number in task.paper)
        print(f"{name:20} {task.summary}" + (f"\n{'':20} paper: {numbers}" if numbers else ""))
    print("\nWithout a model: seed-jax eval score caption, vqa, wups, fid or cmmd.")


def run(args: argparse.Namespace) -> None:
    """List the tasks, or run those that are named and write the report."""
    if args.list:
        list_tasks()
        return
    from seed_jax import evaluate

    if args.config is None and not args.tasks:
        raise UserError("No task is given: name some of those that `seed-jax eval --list` shows, or a --config.")
    config = _from_file(args) if args.config else _from_words(args)
    evaluate.run(config, args.out, only=args.tasks, shard=args.shard, show_memory_plan=args.memory_plan)


def _from_words(args: argparse.Namespace) -> Any:
    """Return the config of the tasks that the command line names."""
    from seed_jax.evaluation.tasks import find_task
    from seed_jax.train.config import base
    from seed_jax.train.config.evaluation import EvaluationConfig, TaskConfig

    names = list(dict.fromkeys(args.tasks))
    for name in names:
        find_task(name)
    _check_given(args, "model", "data", "out")
    if args.set:
        raise UserError("--set changes options of a config: name one with --config, or use the command's options.")
    config = base(EvaluationConfig)
    tasks: Any = config.tasks
    for name in names:
        tasks[name] = base(TaskConfig, data=str(args.data))
    _override(config, args)
    return config


def _from_file(args: argparse.Namespace) -> Any:
    """Return a config with what the command line changes; paths on the command line start from where it is given."""
    from seed_jax.train.config import load_config
    from seed_jax.train.config.evaluation import STAGE

    config = load_config(args.config, args.set)
    if config.get("stage") != STAGE:
        raise UserError(f"{args.config} does not describe an evaluation: name a config such as eval:paper.")
    _check_given(args, "out")
    given = [f"--{name}" for name in _SINGLE_TASK_FILES if getattr(args, name) is not None]
    if given:
        raise UserError(
            f"{given[0]} belongs to one task: change it in the config with --set tasks.NAME.{given[0][2:]}=."
        )
    if args.data is not None:
        config.data_root = str(args.data)
    _override(config, args)
    return config


def _check_given(args: argparse.Namespace, *names: str) -> None:
    missing = [f"--{name}" for name in names if getattr(args, name) is None]
    if missing:
        raise UserError(f"{' and '.join(missing)} must be given to run tasks.")


def _override(config: Any, args: argparse.Namespace) -> None:
    """Change the options that the command line gives."""
    if args.model is not None:
        config.model.directory = str(args.model)
    if args.tensor_parallel is not None:
        config.model.tensor_parallel = args.tensor_parallel
    for name in _MODEL:
        if getattr(args, name) is not None:
            config.model[name] = str(getattr(args, name))
    decoding = {name: getattr(args, name) for name in _DECODING if getattr(args, name) is not None}
    for smallest, name in ((1, "limit"), (1, "frames"), (0, "max_bad"), (1, "batch_size")):
        value = getattr(args, name)
        if value is not None and value < smallest:
            raise UserError(f"--{name.replace('_', '-')} is {value}, expected at least {smallest}.")
    for task in config.tasks.values():
        for name in _TASK:
            value = getattr(args, name)
            if value is not None:
                task[name] = str(value.absolute()) if isinstance(value, Path) else value
        for name, value in decoding.items():
            task.decoding[name] = value

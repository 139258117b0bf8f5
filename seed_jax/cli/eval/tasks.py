"""`seed-jax eval TASK...`: run tasks on a model."""

import argparse
import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

from seed_jax.cli.generation_options import add_model_options
from seed_jax.errors import UserError
from seed_jax.inference.generation.sampling_params import SamplingParams

# Options that replace the decoding of the paper's protocol.
_DECODING = ("max_new_tokens", "beams", "length_penalty", "temperature", "top_p", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the tasks and their options."""
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="task; see --list")
    parser.add_argument("--list", action="store_true", help="list the tasks with the papers' numbers")
    add_model_options(parser, required=False)
    parser.add_argument("--decoder", type=Path, metavar="DIR", help="image decoder of tasks that draw")
    parser.add_argument("--clip", type=Path, metavar="DIR", help="Hugging Face CLIP model of tasks that compare images")
    data = parser.add_argument_group("data")
    data.add_argument("--data", type=Path, metavar="DIR", help="directory of the official files")
    data.add_argument("--annotations", type=Path, metavar="FILE", help="if it is not found by its official name")
    data.add_argument("--questions", type=Path, metavar="FILE", help="if it is not found by its official name")
    data.add_argument("--images", type=Path, metavar="DIR", help="images or videos (default: --data)")
    data.add_argument("--split", metavar="NAME", help="split of the dataset (default: the one of the paper)")
    data.add_argument("--frames", type=int, metavar="N", help="frames per video (default: the task's)")
    data.add_argument("--limit", type=int, metavar="N", help="use the first N samples only")
    data.add_argument("--shard", default="1/1", metavar="I/N", help="predict every N-th sample only, from the I-th on")
    data.add_argument(
        "--max-bad", type=int, default=0, metavar="N", help="samples that may be left out as unreadable (default: 0)"
    )
    decoding = parser.add_argument_group("decoding (default: the task's protocol)")
    for name in _DECODING:
        kind = type(getattr(SamplingParams(), name))
        decoding.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help="replaces the task's")
    decoding.add_argument("--batch-size", type=int, default=8, metavar="N", help="samples at a time (default: 8)")
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, metavar="DIR", help="directory for predictions, results and report")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """List the tasks, or run those that are named and write the report."""
    from seed_jax.evaluation.tasks import all_tasks, find_task  # late: `--help` waits for neither NumPy nor JAX

    if args.list:
        for name, task in sorted(all_tasks().items()):
            numbers = ", ".join(f"{number.model} {number.value:g} {number.metric}" for number in task.paper)
            print(f"{name:20} {task.summary}" + (f"\n{'':20} paper: {numbers}" if numbers else ""))
        print("\nWithout a model: seed-jax eval score caption, vqa, fid or cmmd.")
        return
    if not args.tasks:
        raise UserError("No task is given: name some of those that `seed-jax eval --list` shows.")
    tasks = [find_task(name) for name in dict.fromkeys(args.tasks)]
    missing = [f"--{name}" for name in ("model", "data", "out") if getattr(args, name) is None]
    if missing:
        raise UserError(f"{' and '.join(missing)} must be given to run tasks.")
    if args.frames is not None and args.frames < 1:
        raise UserError(f"--frames is {args.frames}, expected at least 1.")

    from seed_jax.cli.generation_loading import load_config, load_model
    from seed_jax.evaluation.eval_model import EvalModel
    from seed_jax.evaluation.fingerprint import describe_model
    from seed_jax.evaluation.report.files import write_report
    from seed_jax.evaluation.runner import RunOptions, Shard, run_task
    from seed_jax.evaluation.task import DataOptions
    from seed_jax.inference.seed_llama import MAX_IMAGE_BATCH

    decoding = {name: getattr(args, name) for name in _DECODING if getattr(args, name) is not None}
    options = RunOptions(args.batch_size, args.limit, Shard.parse(args.shard), args.max_bad, decoding)
    data = DataOptions(args.data, args.annotations, args.questions, args.images, args.split, args.frames)
    config = load_config(args)
    if config.decoder is None and any(task.draws for task in tasks):
        raise UserError(f"{config.model} names no image decoder, which tasks that draw need: give one with --decoder.")
    if args.clip is None and any(task.needs_clip for task in tasks):
        raise UserError("These tasks compare images by CLIP: give the folder of a CLIP model with --clip.")
    description = describe_model(config, args.clip)
    heaviest = max((dataclasses.replace(task.sampling_params, **decoding) for task in tasks), key=_cost)

    @functools.cache
    def open_model() -> EvalModel:
        return EvalModel(
            load_model(
                args,
                config,
                heaviest,
                prompts=args.batch_size,
                num_images=MAX_IMAGE_BATCH,
                draws=any(task.draws for task in tasks),
            ),
            args.clip,
            args.out,
        )

    runs = [run_task(task, data, args.out / task.name, options, description, open_model) for task in tasks]
    finished = [run for run in runs if run is not None]
    if len(finished) < len(runs):
        return
    page = write_report(args.out, finished)
    for finished_run in finished:
        _print_results(finished_run.results)
    logging.info("The report is %s.", page)


def _cost(params: SamplingParams) -> int:
    return params.beams * (1 + params.guided) * params.max_new_tokens


def _print_results(results: dict[str, Any]) -> None:
    values = "  ".join(f"{name} {value:.2f}" for name, value in results["metrics"].items())
    left_out = f", {len(results['bad'])} left out" if results["bad"] else ""
    print(f"{results['task']} ({results['scored']} samples{left_out}): {values or 'not scored'}")

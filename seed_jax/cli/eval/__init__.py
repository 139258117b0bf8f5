"""`seed-jax eval`: run evaluation tasks on a model, score files without one, and compare runs."""

import argparse
from collections.abc import Sequence
from typing import Any

from seed_jax.cli.eval import compare, score, tasks

DESCRIPTION = """Evaluate a model on the benchmarks of the papers. Run the same command again to resume. Further
commands: `seed-jax eval score KIND` scores files of predictions without a model, `seed-jax eval compare A B` compares
two runs; each has a --help of its own."""
COMMANDS = {"score": score, "compare": compare}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command; its first word is a task, or one of COMMANDS."""
    parser = subparsers.add_parser(
        "eval",
        help="evaluate a model on benchmarks, and score predictions",
        description=DESCRIPTION.replace("`", ""),
        usage="seed-jax eval TASK [TASK ...] --model DIR --data DIR --out DIR [options]\n"
        "       seed-jax eval {score,compare} ...\n       seed-jax eval --list",
    )
    tasks.add_arguments(parser)
    parse_tasks = parser.parse_known_args

    def parse(args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        # Positional task names and nested commands exclude each other in argparse: the first word decides.
        if args and args[0] in COMMANDS:
            commands = argparse.ArgumentParser(prog="seed-jax eval")
            nested = commands.add_subparsers(dest="eval_command", required=True, metavar="COMMAND")
            COMMANDS[args[0]].add_parser(nested)
            return commands.parse_known_args(args, namespace)
        return parse_tasks(args, namespace)

    parser.parse_known_args = parse

"""`seed-jax eval`: run evaluation tasks on a model, score files without one, compare runs and write reports."""

import argparse
from collections.abc import Sequence
from typing import Any

from seed_jax.cli.eval import compare, report, run, score

DESCRIPTION = """Evaluate a model on the benchmarks of the papers. `seed-jax eval TASK ...` is short for `seed-jax eval
run TASK ...`. Run the same command again to resume."""
COMMANDS = ("run", "list", "score", "compare", "report")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command and its subcommands; without the name of one, the words are those of `run`."""
    parser = subparsers.add_parser(
        "eval",
        help="evaluate a model on benchmarks, and score predictions",
        description=DESCRIPTION.replace("`", ""),
        usage="seed-jax eval TASK [TASK ...] --model DIR --data DIR --out DIR [options]\n"
        f"       seed-jax eval {{{','.join(COMMANDS)}}} ...\n       seed-jax eval --list",
    )
    run.add_options(parser)  # for --help and shell completion of the short form
    commands = parser.add_subparsers(
        prog="seed-jax eval", title="commands", dest="eval_command", required=True, metavar="COMMAND"
    )
    run.add_parser(commands)
    run.add_list_parser(commands)
    for module in (score, compare, report):
        module.add_parser(commands)
    parse = parser.parse_known_args

    def parse_with_default(args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        words = list(args or ())
        if not words or words[0] not in (*COMMANDS, "-h", "--help"):
            words.insert(0, "run")
        return parse(words, namespace)

    parser.parse_known_args = parse_with_default

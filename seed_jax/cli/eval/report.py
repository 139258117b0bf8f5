"""`seed-jax eval report`: score finished runs again and write their report."""

import argparse
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command `report`."""
    parser = subparsers.add_parser(
        "report",
        help="write the report of finished runs again",
        description="Score the predictions of finished runs again, without a model, and write one report of them all: "
        "after shards on several machines, for several runs on one page, or with a newer version.",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="DIR", help="output directory of a run, or of one of its tasks"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the report is written (default: the first DIR)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Score again, and write the report."""
    # Late: needs NumPy.
    from seed_jax.errors import UserError
    from seed_jax.evaluation.report.files import write_report
    from seed_jax.evaluation.runner import RUN, load_run
    from seed_jax.evaluation.tasks import find_task

    directories = []
    for directory in args.runs:
        found = [path.parent for path in (directory / RUN, *sorted(directory.glob(f"*/{RUN}"))) if path.is_file()]
        if not found:
            raise UserError(f"{directory} holds no run of `seed-jax eval`: give the directory of its --out.")
        directories += found
    names = [path.name for path in directories]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(
            f"Two runs are called {twice}: a report names each task once; compare them with `eval compare`."
        )
    out = args.out or args.runs[0]
    out.mkdir(parents=True, exist_ok=True)
    print(write_report(out, [load_run(directory, find_task) for directory in directories]))

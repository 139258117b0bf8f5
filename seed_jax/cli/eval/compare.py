"""`seed-jax eval compare`: two runs side by side, with the significance of their differences."""

import argparse
import json
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command `compare`."""
    parser = subparsers.add_parser(
        "compare",
        help="compare two runs",
        description="Compare two runs on the samples that both scored: difference with 95 % bootstrap interval, and "
        "p-values of the paired bootstrap and of approximate randomization (McNemar's test for right and wrong).",
    )
    parser.add_argument("one", type=Path, metavar="A", help="output directory of a run, or of one of its tasks")
    parser.add_argument("other", type=Path, metavar="B", help="of another run")
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of a table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the comparison."""
    from seed_jax.evaluation.report.compare import compare_runs, format_comparison  # late: needs NumPy

    comparison = compare_runs(args.one, args.other)
    print(json.dumps(comparison, ensure_ascii=False) if args.json else format_comparison(comparison))

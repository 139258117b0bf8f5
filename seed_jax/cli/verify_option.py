"""The option `--verify` of imports and exports."""

import argparse
from pathlib import Path

from seed_jax.convert.parity import Report

EXIT_DIFFERENT = 1


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Add the option: whole, tensors only, or (the default) not at all."""
    parser.add_argument(
        "--verify",
        nargs="?",
        const="full",
        choices=("full", "tensors"),
        help="compare both sides tensor by tensor and, with PyTorch, in what they compute (not with --verify tensors); "
        "write parity.md and parity.json to --out",
    )


def finish(report: Report, directory: Path) -> int:
    """Save the report, print its line, and return the exit code."""
    path = report.save(directory)
    print(f"{path}: {report.summary()}")
    return 0 if report.passed else EXIT_DIFFERENT

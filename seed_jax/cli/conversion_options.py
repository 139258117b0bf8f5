"""Options that `seed-jax import` and `seed-jax export` share."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imports JAX, which --help must not wait for
    from seed_jax.convert.parity import ParityReport

DTYPES = ("float32", "bfloat16", "float16")
EXIT_DIFFERENT = 1


def add_model_argument(group: argparse._ArgumentGroup) -> None:
    """Add `--model` of an export."""
    group.add_argument("--model", required=True, type=Path, metavar="DIR", help="model directory or training workdir")


def add_out_argument(group: argparse._ArgumentGroup, what: str) -> None:
    """Add `--out`; `what` describes the directory."""
    group.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help=f"{what} to write; must be missing or empty"
    )


def add_verify_argument(group: argparse._ArgumentGroup) -> None:
    """Add `--verify`: "full", "tensors", or None by default."""
    group.add_argument(
        "--verify",
        nargs="?",
        const="full",
        choices=("full", "tensors"),
        help="compare every tensor before and after and, unless --verify tensors, the outputs of both models (needs "
        "PyTorch); write parity.md and parity.json to --out; exit code 1 if they differ",
    )


def save_report(report: "ParityReport", directory: Path) -> int:
    """Save a parity report, print its summary, and return the exit code."""
    path = report.save(directory)
    print(f"{path}: {report.summary()}")
    return 0 if report.passed else EXIT_DIFFERENT

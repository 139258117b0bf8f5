"""Options that `seed-jax import` and `seed-jax export` share."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imports JAX, which --help must not wait for
    from seed_jax.convert.parity import ParityReport

DTYPES = ("float32", "bfloat16", "float16")
AS_IN_FILES, WIDEST = "as in the files", "the widest of what is stored"  # defaults of --dtype, in words
EXIT_DIFFERENT = 1


def add_source_argument(group: argparse._ArgumentGroup, metavar: str, what: str) -> None:
    """Add `--from` of an import; `what` describes the file or directory."""
    group.add_argument("--from", dest="source", required=True, type=Path, metavar=metavar, help=what)


def add_language_model_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the arguments that the imports of language models share."""
    add_source_argument(group, "HF_DIR", "directory of a Hugging Face model")
    group.add_argument("--vocabulary", type=Path, metavar="DIR", help="text tokenizer's files (default: HF_DIR)")
    group.add_argument("--tokenizer", type=Path, metavar="DIR", help="image tokenizer that belongs to the model")
    group.add_argument("--decoder", type=Path, metavar="DIR", help="image decoder that belongs to the model")


def add_variant_argument(group: argparse._ArgumentGroup) -> None:
    """Add `--variant` of a diffusers folder."""
    group.add_argument("--variant", help="weight files to read, such as fp16 (default: those without a variant)")


def add_model_argument(group: argparse._ArgumentGroup) -> None:
    """Add `--model` of an export."""
    group.add_argument("--model", required=True, type=Path, metavar="DIR", help="model directory or training workdir")


def add_out_argument(group: argparse._ArgumentGroup, what: str) -> None:
    """Add `--out`; `what` describes the directory."""
    group.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help=f"{what} to write; must be missing or empty"
    )


def add_dtype_argument(group: argparse._ArgumentGroup, default: str) -> None:
    """Add `--dtype`, None unless given; `default` describes what None means."""
    group.add_argument("--dtype", choices=DTYPES, help=f"dtype to store (default: {default})")


def add_shard_size_argument(group: argparse._ArgumentGroup) -> None:
    """Add `--max-shard-size` of a Hugging Face directory."""
    group.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="of a weight file (default: %(default)s)"
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

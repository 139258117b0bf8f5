"""`seed-jax verify official`: compare an imported official model with PyTorch, and write a report."""

import argparse
from pathlib import Path

from seed_jax.cli.conversion_options import EXIT_DIFFERENT

REPORT = Path("official_parity.md")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `verify` and its subcommand."""
    text = "Compare an imported official model with PyTorch."
    parser = subparsers.add_parser("verify", help=text, description=text)
    kinds = parser.add_subparsers(title="what to compare with", dest="kind", required=True, metavar="KIND")
    official = kinds.add_parser(
        "official",
        help="the official files and their PyTorch implementation",
        description="Compare each part of a model with PyTorch on fixed inputs in float32: logits with transformers, "
        "codes and embeddings with a PyTorch implementation of the tokenizer, UNet, autoencoder and text encoder with "
        "diffusers; and every tensor with the official files where they are still there. Needs PyTorch, transformers "
        "and twice the memory of the largest part in float32. Writes a report to attach to an issue; exit code 1 if "
        "something differs.",
    )
    official.add_argument(
        "--model", required=True, type=Path, metavar="DIR", help="bundle, or model directory of one imported part"
    )
    official.add_argument(
        "--out", type=Path, default=REPORT, metavar="FILE", help="report to write (default: %(default)s)"
    )
    official.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare, write the report, print a summary, and return the exit code."""
    from seed_jax.doctor import report as reports  # deferred: --help needs no JAX
    from seed_jax.doctor.official import verify_official

    report = verify_official(args.model)
    for part, comparison in report.parts.items():
        print(f"{part}: {comparison.summary()}")
    report.save(args.out, reports.lines(reports.collect(fit=False)))
    print(f"{args.out}: {'passed' if report.passed else 'FAILED'}; attach it to an issue")
    return 0 if report.passed else EXIT_DIFFERENT

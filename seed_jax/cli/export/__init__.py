"""`seed-jax export`: a model directory back to the PyTorch formats, one module a kind of model."""

import argparse

from seed_jax.cli.export.llama import add_llama
from seed_jax.cli.export.tokenizer import add_tokenizer
from seed_jax.cli.export.unclip import add_unclip


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add one subcommand a kind."""
    parser = subparsers.add_parser("export", help="a model directory to the PyTorch formats")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for add in (add_tokenizer, add_llama, add_unclip):
        add(kinds)

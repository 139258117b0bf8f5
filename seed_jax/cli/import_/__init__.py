"""`seed-jax import`: official files to a model directory, one module a kind of model."""

import argparse

from seed_jax.cli.import_.llama import add_llama
from seed_jax.cli.import_.tokenizer import add_tokenizer
from seed_jax.cli.import_.unclip import add_unclip


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add one subcommand a kind."""
    parser = subparsers.add_parser("import", help="official files to a model directory")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for add in (add_tokenizer, add_llama, add_unclip):
        add(kinds)

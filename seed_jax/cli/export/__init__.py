"""`seed-jax export`: convert a model directory to the PyTorch formats; one module per kind of model."""

import argparse

from seed_jax.cli.export import language_model, sd, tokenizer, unclip


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `export` and its subcommands."""
    text = "Convert a model directory or training workdir to the PyTorch formats."
    parser = subparsers.add_parser("export", help=text, description=text)
    kinds = parser.add_subparsers(title="kinds of models", dest="kind", required=True, metavar="KIND")
    for module in (tokenizer, language_model, unclip, sd):
        module.add_parser(kinds)

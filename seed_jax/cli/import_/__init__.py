"""`seed-jax import`: convert official files to a model directory; one module per kind of model."""

import argparse

from seed_jax.cli.import_ import language_model, sd, tokenizer, unclip


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `import` and its subcommands."""
    text = "Convert official files to a model directory."
    parser = subparsers.add_parser("import", help=text, description=text)
    kinds = parser.add_subparsers(title="kinds of models", dest="kind", required=True, metavar="KIND")
    for module in (tokenizer, language_model, unclip, sd):
        module.add_parser(kinds)

"""`seed-jax data`: foreign formats to shards, and what is in them."""

import argparse

from seed_jax.cli.data import build, show


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("data", help=__doc__)
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    build.add_parser(commands)
    build.add_sources_parser(commands)
    show.add_parser(commands)

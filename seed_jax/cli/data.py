"""`seed-jax data`: foreign formats to shards, and what is in them."""

import argparse

from seed_jax.cli import data_build, data_show


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("data", help=__doc__)
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    data_build.add_parser(commands)
    data_build.add_sources_parser(commands)
    data_show.add_parser(commands)

"""`seed-jax data`: build shards from foreign formats and inspect them.

The modules of the commands import heavy packages (JAX, Grain, PyArrow, Pillow) inside their `run` functions only, so
that `--help` answers quickly.
"""

import argparse

from seed_jax.cli.data import build, draft_codes, show, sources


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `data` and its subcommands."""
    parser = subparsers.add_parser(
        "data",
        help="build and inspect shards",
        description="Build shards from foreign formats, list the formats, and inspect shards and mixtures.",
    )
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    build.add_parser(commands)
    sources.add_parser(commands)
    show.add_parser(commands)
    draft_codes.add_parser(commands)

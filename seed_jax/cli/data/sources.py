"""`seed-jax data sources`: list the input formats, or describe one."""

import argparse


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `sources`."""
    parser = commands.add_parser(
        "sources",
        help="list the input formats",
        description="List the kinds of input that `seed-jax data build` reads, with their options, or describe one.",
    )
    parser.add_argument("kind", nargs="?", metavar="KIND", help="describe this kind: its files, keys and tasks")
    parser.set_defaults(run=run_sources)


def run_sources(args: argparse.Namespace) -> int:
    """Print the module docstring and the options of one kind of source, or a line for each kind."""
    import inspect
    import sys

    from seed_jax.data.sources import SOURCES, options_of, source_class

    for kind in [args.kind] if args.kind else sorted(SOURCES):
        description = inspect.getdoc(sys.modules[source_class(kind).__module__]) or ""
        options = " ".join(f"--{name}" for name in options_of(kind))
        print(f"{kind}: {description if args.kind else description.splitlines()[0]}")
        print(f"    options: {options or 'none'}")
    return 0

"""`seed-jax train`: the same as `python -m seed_jax.main`."""

import argparse

from seed_jax.train.config import loading


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "train",
        help="train a stage, or a recipe of several; run again to resume",
        description="Train what a config describes. Run the same command again to resume. Exit code 75 after SIGTERM "
        "means: saved, start me again.",
    )
    parser.add_argument("config", metavar="CONFIG", help="config file or packaged config, e.g. pretrain:tiny")
    parser.add_argument(
        "--workdir", metavar="DIR", help="checkpoints, metrics and the model (default: runs/<config>[_<variant>])"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change an option of the config, e.g. optimizer.peak_lr=1e-4; may be repeated",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Train."""
    from seed_jax import main

    config = loading.load_config(args.config, args.set)
    main.set_up_log()
    main.run(config, loading.resolve_workdir(args.workdir, args.config))

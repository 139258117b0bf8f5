"""Train: `python -m seed_jax.main --config=configs/pretrain.py[:variant] [--workdir=DIR] [--config.key=value]`.

Run the same command again to resume. Exit codes: 0 trained; 2 bad input, one sentence on stderr; 75 stopped by SIGTERM
after saving; 76 the run hangs, lost a host, or finds its workdir in use: start it again.
"""

import argparse
import faulthandler
import functools
import importlib
import logging
import re
import sys
from collections.abc import Sequence
from typing import Any

import ml_collections
from etils import epath

from seed_jax.errors import UserError
from seed_jax.files import describe, is_permanent
from seed_jax.startup import backends, compilation_cache, huge_pages
from seed_jax.terminal import PrintableFormatter, error_line, escaped_stdout
from seed_jax.train.config import loading

# `stage` of a config -> what runs it; any other stage is trained by the loop.
_JOBS = {
    "evaluation": "seed_jax.evaluate:run",
    "recipe": "seed_jax.recipes.quickstart.recipe:run",
    "emoji_recipe": "seed_jax.recipes.emoji.recipe:run",
}
_OVERRIDE = re.compile(r"--config\.([\w.]+)(?:=(.*))?", re.DOTALL)


def load(argv: Sequence[str]) -> tuple[ml_collections.ConfigDict, epath.PathLike]:
    """Return the config and the workdir that a command line gives.

    Raises:
        UserError: bad arguments, or a config that cannot be read.
    """
    args, overrides = parse_arguments(compilation_cache.configure(list(argv)))
    config = loading.load_config(args.config, overrides, option="--config.")
    return config, loading.resolve_workdir(args.workdir, args.config)


def run(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    """Train one stage, or the stages of a recipe; run the tasks of an evaluation.

    Raises:
        UserError: bad input.
        SystemExit: with code 75 after SIGTERM, once the state is saved.
    """
    # JAX is imported here, so that errors in arguments and configs are reported without waiting for it.
    from seed_jax import distributed

    module, _, function = _JOBS.get(str(config.get("stage", "")), "").partition(":")
    if module:
        start = functools.partial(getattr(importlib.import_module(module), function), config, str(workdir))
    else:
        from seed_jax.train import loop
        from seed_jax.train.stages import registry

        start = functools.partial(loop.train, registry.parse_config(config), workdir)
    logging.info("Workdir: %s", workdir)
    distributed.initialize()  # before any backend is used; does nothing on a single host
    start()


def set_up_log() -> None:
    """Show our own messages with the time of day; of libraries, warnings only."""
    logging.basicConfig(level=logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(PrintableFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.captureWarnings(True)
    for library in ("absl", "jax"):
        logging.getLogger(library).setLevel(logging.WARNING)


def parse_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the arguments, and "key=value" for each `--config.key=value` or `--config.key value`.

    Raises:
        UserError: an unknown or incomplete argument.
    """
    parser = _Parser(
        prog="python -m seed_jax.main",
        description="Train what a config describes. Run the same command again to resume.",
        epilog="Exit codes: 0 trained; 2 bad input; 75 stopped by SIGTERM after saving, and 76 the run hangs, lost a "
        "host or finds its workdir in use: start it again.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        action="append",
        metavar="CONFIG",
        help="config file or packaged config, with a variant, e.g. pretrain:tiny",
    )
    parser.add_argument(
        "--config.KEY", metavar="VALUE", dest="override", help="change an option, e.g. --config.optimizer.peak_lr=1e-4"
    )
    parser.add_argument(
        "--workdir", metavar="DIR", help="checkpoints, metrics and the model (default: runs/<config>[_<variant>])"
    )
    parser.add_argument(compilation_cache.NO_CACHE, action="store_true", help="compile everything anew")
    rest, overrides = [], []
    remaining = iter(argv)
    for argument in remaining:
        match = _OVERRIDE.fullmatch(argument)
        if match is None:
            rest.append(argument)
            continue
        value = match[2] if match[2] is not None else next(remaining, None)
        if value is None or (match[2] is None and value.startswith("--")):
            raise UserError(f"{argument} has no value: write {argument}=VALUE.")
        overrides.append(f"{match[1]}={value}")
    args = parser.parse_args(rest)
    if not args.config:
        raise UserError("--config is missing: give a config file or a packaged config such as pretrain:tiny.")
    if len(args.config) > 1:
        raise UserError(f"--config is given {len(args.config)} times ({', '.join(args.config)}): a run has one config.")
    args.config = args.config[0]
    return args, overrides


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(f"{message} (see --help).")


def cli() -> None:
    """Load a config and run it, with one sentence and exit code 2 for bad input."""
    backends.skip_absent_tpus()
    faulthandler.enable()
    exit_process = sys.exit
    try:
        with escaped_stdout():
            config, workdir = load(sys.argv[1:])
            set_up_log()
            from seed_jax import distributed  # imports JAX

            exit_process = distributed.exit_process
            run(config, workdir)
    except UserError as error:
        print(error_line("seed_jax", error), file=sys.stderr)
        exit_process(error.exit_code)
    except OSError as error:
        if not is_permanent(error):
            raise  # such as a lost connection: launchers start the run again
        print(error_line("seed_jax", f"{describe(error)}."), file=sys.stderr)
        exit_process(UserError.exit_code)


if __name__ == "__main__":
    huge_pages.restart_with_huge_pages()
    cli()

"""`seed-jax plan`: memory, exchanges and estimated time of a training step on a machine that is not here."""

import argparse
import ast
import importlib.util
import json
import sys
from pathlib import Path

import ml_collections

from seed_jax.errors import UserError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("plan", help=__doc__)
    parser.add_argument("--config", required=True, help="as for training, e.g. configs/pretrain_full.py:8b")
    parser.add_argument("--topology", required=True, help="e.g. v5e:16x16, v5p:4x4x4, v6e:8x8, v4:4x4x4, h200:8, cpu:8")
    parser.add_argument("--slices", type=int, default=1, help="so many of them, joined by a network")
    parser.add_argument("--batch", type=int, help="rows of the global batch, instead of data.batch_size")
    parser.add_argument(
        "--mesh", default="", metavar="AXIS=N,...", help="instead of the config's, e.g. fsdp=16,tensor=4"
    )
    parser.add_argument("--remat", help="instead of model.remat")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any other key of the config")
    parser.add_argument("--search", action="store_true", help="try microbatches, remat policies and meshes")
    parser.add_argument("--hlo", metavar="FILE", help="write the compiled program")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the plan; exit code 1 when it does not fit."""
    from seed_jax.plan import (
        planning,
        report,
        topology,  # late: --help needs no jax
    )

    topology.prepare()
    config = load_config(args.config)
    for key, value in overrides(args):
        override(config, key, value)
    where = topology.find(args.topology, args.slices)
    if args.search:
        plans = planning.search(config, where, say=lambda line: print(line, file=sys.stderr))
        if not plans:
            raise UserError(f"Nothing that was tried fits {args.topology}: take more chips, or a smaller --batch.")
    else:
        plans = [planning.make(config, where, args.hlo)]
    if args.json:
        found = [plan.to_dict() for plan in plans]
        print(json.dumps(found if args.search else found[0], indent=2))
    else:
        print("\n\n".join(report.text(plan) for plan in plans[:3]))
    return 0 if plans[0].fits else 1


def overrides(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Return (key, text) for everything that the command line changes in the config."""
    found = [("data.batch_size", str(args.batch))] if args.batch is not None else []
    found += [("model.remat", repr(args.remat))] if args.remat else []
    found += [("mesh.replica", str(args.slices))] if args.slices > 1 else []
    if args.mesh:
        sizes = dict(split(pair, "--mesh") for pair in args.mesh.split(","))
        sizes = {"replica": str(args.slices), "fsdp": "-1", "tensor": "1"} | sizes
        found += [(f"mesh.{axis}", size) for axis, size in sizes.items()]
    return found + [split(pair, "--set") for pair in args.set]


def split(pair: str, option: str) -> tuple[str, str]:
    key, separator, value = pair.partition("=")
    if not separator:
        raise UserError(f"{option} {pair} is not KEY=VALUE.")
    return key.strip(), value.strip()


def load_config(name: str) -> ml_collections.ConfigDict:
    """Run `get_config` of a config file, `FILE[:VARIANT]`."""
    path, _, variant = name.partition(":")
    file = Path(path)
    if not file.is_file():
        raise UserError(f"--config cannot be loaded: {path} is missing.")
    root = str(file.resolve().parents[1])  # config files import one another from there
    sys.path[:0] = [] if root in sys.path else [root]
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant) if variant else module.get_config()


def override(config: ml_collections.ConfigDict, key: str, text: str) -> None:
    """Set one dotted key, which must exist, to a value of its type."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    try:
        with config.ignore_type() if value is None else config.unlocked():
            parent = config
            *parts, last = key.split(".")
            for part in parts:
                parent = parent[part]
            if last not in parent:
                raise KeyError(last)
            parent[last] = value
    except (KeyError, AttributeError):
        raise UserError(f"{key} is not a key of the config.") from None
    except TypeError:
        raise UserError(f"{key} is {text!r}, which is not of the type the config has there.") from None

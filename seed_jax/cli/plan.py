"""`seed-jax plan`: memory, collectives and estimated time of a training step on accelerators that are not here."""

import argparse
import json
import sys
from pathlib import Path

from seed_jax.errors import UserError
from seed_jax.train.config import loading


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "plan",
        help="memory and estimated time of a training step on a pod, without one",
        description="Compile the training step of a config for a topology that is not here, and report its memory, "
        "collectives and estimated time. Exit code 1 if it does not fit.",
    )
    what = parser.add_argument_group("what to plan")
    what.add_argument("--config", required=True, metavar="CONFIG", help="as for training, e.g. pretrain_full:8b")
    what.add_argument("--batch", type=int, metavar="N", help="global batch size, instead of data.batch_size")
    what.add_argument("--mesh", default="", metavar="AXIS=N,...", help="instead of the config's, e.g. fsdp=16,tensor=4")
    what.add_argument("--remat", metavar="POLICY", help="instead of model.remat")
    what.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any other option of the config")
    where = parser.add_argument_group("topology")
    where.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help="v5e:16x16, v5p:4x4x4, v6e:8x8, v7x:4x4x4, v4:4x4x4, b200:8, h200:8, cpu:8, ...",
    )
    where.add_argument("--slices", type=int, default=1, metavar="N", help="slices joined by DCN (default: 1)")
    output = parser.add_argument_group("output")
    output.add_argument("--search", action="store_true", help="try microbatches, remat policies and meshes")
    output.add_argument("--hlo", type=Path, metavar="FILE", help="write the compiled program")
    output.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the plan; exit code 1 if it does not fit."""
    config = loading.load_config(args.config, overrides(args))
    if args.hlo and args.search:
        raise UserError("--hlo writes one program, but --search compiles many: leave one of them out.")
    if args.hlo and not args.hlo.parent.is_dir():
        raise UserError(f"The folder of --hlo {args.hlo} does not exist: create {args.hlo.parent}.")
    if "stages" in config or "tasks" in config:
        raise UserError(
            f"--config {args.config} is no single training stage: name the config of one, such as pretrain:8b."
        )
    from seed_jax.plan import planning, report, topology
    from seed_jax.train.stages.registry import parse_config

    topology.prepare()
    parsed = parse_config(config)
    target = topology.find(args.topology, args.slices)
    if args.search:
        plans = planning.search(parsed, target, log=lambda line: print(line, file=sys.stderr))
        if not plans:
            raise UserError(f"No layout that was tried fits {args.topology}: take more chips or a smaller --batch.")
    else:
        plans = [planning.make(parsed, target, args.hlo)]
    if args.json:
        values = [plan.to_dict() for plan in plans]
        print(json.dumps(values if args.search else values[0], indent=2))
    else:
        print("\n\n".join(report.text(plan) for plan in plans[:3]))
    return 0 if plans[0].fits else 1


def overrides(args: argparse.Namespace) -> list[str]:
    """Return "key=value" for everything that the command line changes in the config."""
    changes = [f"data.batch_size={args.batch}"] if args.batch is not None else []
    changes += [f"model.remat={args.remat}"] if args.remat else []
    changes += [f"mesh.replica={args.slices}"] if args.slices > 1 else []
    if args.mesh:
        sizes = {"replica": str(args.slices), "fsdp": "-1", "tensor": "1"}
        for pair in args.mesh.split(","):
            axis, separator, size = pair.partition("=")
            if not separator or axis not in sizes:
                raise UserError(f"--mesh {pair} is not AXIS=N with one of the axes {', '.join(sizes)}.")
            sizes[axis] = size
        changes += [f"mesh.{axis}={size}" for axis, size in sizes.items()]
    return changes + args.set

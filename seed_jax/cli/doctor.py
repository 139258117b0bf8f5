"""`seed-jax doctor`: examine this machine, a model directory, and the numbers that this device computes."""

import argparse
import dataclasses
import json
import logging
from pathlib import Path

EXIT_UNHEALTHY = 1
DESCRIPTION = """Report versions, devices, memory and what fits on this machine; examine a model directory; compare what
this device computes with PyTorch's recorded numbers. Exit code 1 if a core package or every device is missing, a model
directory is incomplete, or the self-test fails. The network is used with --network only."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command `doctor`."""
    summary = "examine this machine, a model directory, and what this device computes"
    parser = subparsers.add_parser("doctor", help=summary, description=DESCRIPTION)
    parser.add_argument(
        "models", nargs="*", type=Path, metavar="MODEL_DIR", help="model directories, bundles or workdirs to read whole"
    )
    parser.add_argument(
        "--self-test",
        action="store_true",
        help="run tiny models with recorded outputs at both matmul precisions, train, resume, generate and draw; "
        "up to three minutes",
    )
    parser.add_argument("--network", action="store_true", help="ask the hub for one small file")
    parser.add_argument("--no-fit", action="store_true", help="do not plan the memory of the released models")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report and return the exit code."""
    from seed_jax.doctor import report as reports  # deferred: --help needs no JAX
    from seed_jax.doctor.model_check import check_model

    report = reports.collect(network=args.network, fit=not args.no_fit)
    checks = [check for directory in args.models for check in check_model(directory)]
    if not args.json:
        print("--- paste this into an issue ---")
        print("\n".join(reports.lines(report, checks)), flush=True)
    outcomes = _self_test(quiet=args.json) if args.self_test and report["devices"]["count"] else []
    if args.json:
        rows = [{**dataclasses.asdict(outcome), "passed": outcome.passed} for outcome in outcomes]
        report |= {"models": [dataclasses.asdict(check) for check in checks], "self_test": rows}
        print(json.dumps(report, indent=2))
    else:
        print("--- end ---")
    passed = all(outcome.passed for outcome in outcomes) and not any(check.findings for check in checks)
    return 0 if reports.healthy(report) and passed else EXIT_UNHEALTHY


def _self_test(quiet: bool) -> list:
    from seed_jax.doctor.self_test import HEADER, run_self_test

    logging.getLogger().setLevel(logging.WARNING)  # the training loop reports every step
    if not quiet:
        print(HEADER, flush=True)
    outcomes = run_self_test(lambda outcome: None if quiet else print(outcome.line(), flush=True))
    if not quiet:
        failed = sum(not outcome.passed for outcome in outcomes)
        seconds = sum(outcome.seconds for outcome in outcomes)
        print(f"self-test: {len(outcomes) - failed} of {len(outcomes)} passed in {seconds:.0f} s")
    return outcomes

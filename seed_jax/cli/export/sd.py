"""`seed-jax export sd`: SEED-1's decoder as a folder that PyTorch diffusers loads."""

import argparse
from pathlib import Path

from seed_jax.cli.conversion_options import (
    add_dtype_argument,
    add_model_argument,
    add_out_argument,
    add_verify_argument,
    save_report,
)


def add_parser(kinds: argparse._SubParsersAction) -> None:
    """Add the subcommand `sd`."""
    parser = kinds.add_parser(
        "sd",
        help="SEED-1's decoder, Stable Diffusion 1.4, for diffusers",
        description="Convert a Stable Diffusion decoder to a diffusers folder, without safety checker.",
    )
    model = parser.add_argument_group("model")
    add_model_argument(model)
    model.add_argument(
        "--text-tokenizer", type=Path, metavar="DIR",
        help="vocabulary of the text encoder (default: the model's own; one imported from a single file has none)",
    )  # fmt: skip
    output = parser.add_argument_group("output")
    add_out_argument(output, "diffusers folder")
    add_dtype_argument(output, "as stored")
    add_verify_argument(output)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert the decoder and verify it on request; return the exit code."""
    from seed_jax.convert.diffusion import diffusers_export, parity  # deferred: --help needs no JAX

    diffusers_export.export_stable_diffusion(args.model, args.out, dtype=args.dtype, text_tokenizer=args.text_tokenizer)
    print(f"{args.out}: a diffusers folder of class {diffusers_export.STABLE_DIFFUSION_PIPELINE}")
    if not args.verify:
        return 0
    report = parity.export_report(args.model, args.out, forward=args.verify == "full")
    return save_report(report, args.out)

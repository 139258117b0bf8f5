"""`seed-jax export unclip`: the unCLIP decoder as a folder that PyTorch diffusers loads."""

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
    """Add the subcommand `unclip`."""
    parser = kinds.add_parser(
        "unclip",
        help="an unCLIP decoder, for diffusers",
        description="Convert an unCLIP decoder to a diffusers folder. The PyTorch pipeline also needs an image "
        "encoder: imported decoders keep theirs; for a trained one give --image-encoder.",
    )
    model = parser.add_argument_group("model")
    add_model_argument(model)
    model.add_argument(
        "--image-encoder",
        type=Path,
        metavar="DIR",
        help="diffusers folder, or imported decoder, to copy the image encoder from (default: the model's own)",
    )
    output = parser.add_argument_group("output")
    add_out_argument(output, "diffusers folder")
    add_dtype_argument(output, "as stored")
    add_verify_argument(output)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert the decoder and verify it on request; return the exit code."""
    from seed_jax.convert.diffusion import diffusers_export, parity  # deferred: --help needs no JAX

    diffusers_export.export_unclip(args.model, args.out, dtype=args.dtype, image_side=args.image_encoder)
    print(f"{args.out}: a diffusers folder of class {diffusers_export.PIPELINE}")
    if not args.verify:
        return 0
    report = parity.export_report(args.model, args.out, forward=args.verify == "full")
    return save_report(report, args.out)

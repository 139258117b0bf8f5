"""`seed-jax import unclip`: a diffusers folder of the unCLIP decoder to a model directory."""

import argparse

from seed_jax.cli.conversion_options import (
    AS_IN_FILES,
    add_dtype_argument,
    add_out_argument,
    add_source_argument,
    add_variant_argument,
    add_verify_argument,
    save_report,
)


def add_parser(kinds: argparse._SubParsersAction) -> None:
    """Add the subcommand `unclip`."""
    parser = kinds.add_parser(
        "unclip",
        help="the unCLIP Stable Diffusion decoder",
        description="Convert a diffusers folder such as stable-diffusion-2-1-unclip to a model directory.",
    )
    model = parser.add_argument_group("model")
    add_source_argument(model, "DIFFUSERS_DIR", "diffusers folder")
    add_variant_argument(model)
    output = parser.add_argument_group("output")
    add_out_argument(output, "model directory")
    add_dtype_argument(output, AS_IN_FILES)
    add_verify_argument(output)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert the decoder and verify it on request; return the exit code."""
    from seed_jax.convert.diffusion import diffusers_import, parity  # deferred: --help needs no JAX

    config = diffusers_import.import_to_model_dir(args.source, args.out, variant=args.variant, dtype=args.dtype)
    print(f"{args.out}: unCLIP decoder for {config.image_size} pixels, sampler {config.sampler}")
    if not args.verify:
        return 0
    report = parity.import_report(args.source, args.out, variant=args.variant, forward=args.verify == "full")
    return save_report(report, args.out)

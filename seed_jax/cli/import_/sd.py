"""`seed-jax import sd`: Stable Diffusion 1.4, SEED-1's decoder, to a model directory."""

import argparse
from pathlib import Path

from seed_jax.cli.conversion_options import DTYPES, add_out_argument


def add_parser(kinds: argparse._SubParsersAction) -> None:
    """Add the subcommand `sd`."""
    parser = kinds.add_parser(
        "sd",
        help="SEED-1's decoder, Stable Diffusion 1.4",
        description="Convert Stable Diffusion 1.4, a diffusers folder or CompVis' single file, to a model directory, "
        "without safety checker.",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--from",
        dest="source",
        required=True,
        type=Path,
        metavar="SOURCE",
        help="diffusers folder, or CompVis' single file (sd-v1-4.ckpt or .safetensors)",
    )
    model.add_argument("--variant", help="weight files to read, such as fp16 (default: those without a variant)")
    output = parser.add_argument_group("output")
    add_out_argument(output, "model directory")
    output.add_argument("--dtype", choices=DTYPES, help="dtype to store (default: as in the files)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert the decoder; return the exit code."""
    from seed_jax.convert.diffusion import compvis, stable_diffusion  # deferred: --help needs no JAX
    from seed_jax.files import check_vacant

    check_vacant(args.out)  # before minutes of reading
    if args.source.is_file():
        decoder = compvis.open_checkpoint(args.source, dtype=args.dtype)
    else:
        decoder = stable_diffusion.open_stable_diffusion(args.source, variant=args.variant, dtype=args.dtype)
    stable_diffusion.save_model_dir(decoder, args.out, {"from": str(args.source), "variant": args.variant})
    config = decoder.config
    print(f"{args.out}: Stable Diffusion decoder for {config.image_size} pixels, sampler {config.sampler}")
    return 0

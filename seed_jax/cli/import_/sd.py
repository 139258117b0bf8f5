"""`seed-jax import sd`: Stable Diffusion 1.4, SEED-1's decoder, to a model directory."""

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
    """Add the subcommand `sd`."""
    parser = kinds.add_parser(
        "sd",
        help="SEED-1's decoder, Stable Diffusion 1.4",
        description="Convert Stable Diffusion 1.4, a diffusers folder or CompVis' single file, to a model directory, "
        "without safety checker.",
    )
    model = parser.add_argument_group("model")
    add_source_argument(model, "SOURCE", "diffusers folder, or CompVis' single file (sd-v1-4.ckpt or .safetensors)")
    add_variant_argument(model)
    output = parser.add_argument_group("output")
    add_out_argument(output, "model directory")
    add_dtype_argument(output, AS_IN_FILES)
    add_verify_argument(output)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert the decoder and verify it on request; return the exit code."""
    from seed_jax.convert.diffusion import compvis, parity, stable_diffusion  # deferred: --help needs no JAX
    from seed_jax.convert.model_card.facts import ARTEFACTS, origins
    from seed_jax.files import check_vacant

    check_vacant(args.out)  # before minutes of reading
    if args.source.is_file():
        decoder = compvis.open_checkpoint(args.source, dtype=args.dtype)
    else:
        decoder = stable_diffusion.open_stable_diffusion(args.source, variant=args.variant, dtype=args.dtype)
    provenance = {"from": str(args.source), "variant": args.variant, ARTEFACTS: origins(args.source)}
    stable_diffusion.save_model_dir(decoder, args.out, provenance)
    config = decoder.config
    print(f"{args.out}: Stable Diffusion decoder for {config.image_size} pixels, sampler {config.sampler}")
    if not args.verify:
        return 0
    report = parity.import_report(args.source, args.out, variant=args.variant, forward=args.verify == "full")
    return save_report(report, args.out)

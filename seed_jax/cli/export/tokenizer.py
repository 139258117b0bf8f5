"""`seed-jax export tokenizer`: an image tokenizer under the original's names."""

import argparse
import importlib.util
import logging

from seed_jax.cli.conversion_options import (
    DTYPES,
    add_model_argument,
    add_out_argument,
    add_verify_argument,
    save_report,
)


def add_parser(kinds: argparse._SubParsersAction) -> None:
    """Add the subcommand `tokenizer`."""
    parser = kinds.add_parser(
        "tokenizer",
        help="an image tokenizer, for the original code",
        description="Convert an image tokenizer to files that the original code loads: seed_quantizer with the ViT "
        "inside, or SEED-1's causal_qformer and seed_tokenizer with the ViT beside them.",
    )
    model = parser.add_argument_group("model")
    add_model_argument(model)
    vit = model.add_mutually_exclusive_group()
    vit.add_argument(
        "--without-vit", dest="vit", action="store_const", const="none",
        help="omit the ViT, as the original file does",
    )  # fmt: skip
    vit.add_argument(
        "--vit-beside",
        dest="vit",
        action="store_const",
        const="beside",
        help="write the ViT to a separate eva_vit_g file",
    )
    vit.add_argument(
        "--vit-inside", dest="vit", action="store_const", const="inside", help="write the ViT into the other file"
    )
    output = parser.add_argument_group("output")
    add_out_argument(output, "directory")
    output.add_argument("--dtype", choices=DTYPES, default="float32", help="dtype to store (default: %(default)s)")
    output.add_argument(
        "--format",
        choices=("safetensors", "pt", "all"),
        default="all",
        help="file format (default: safetensors and, where PyTorch is installed, pt)",
    )
    add_verify_argument(output)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert the tokenizer and verify it on request; return the exit code."""
    from seed_jax.convert.tokenizer import official_export, parity  # deferred: --help needs no JAX

    formats = ("safetensors", "pt") if args.format == "all" else (args.format,)
    if args.format == "all" and importlib.util.find_spec("torch") is None:
        logging.info("PyTorch is not installed: only safetensors are written.")
        formats = ("safetensors",)
    written = official_export.export_tokenizer(args.model, args.out, dtype=args.dtype, vit=args.vit, formats=formats)
    names = [path.name for paths in written.values() for path in paths]
    logging.info("Wrote %s to %s.", ", ".join(names), args.out)
    if not args.verify:
        return 0
    report = parity.parity_report(
        "Export of an image tokenizer",
        args.model,
        [official_export.open_exported(paths) for paths in written.values()],
        importing=False,
        forward=args.verify == "full",
        facts={"from": str(args.model), "to": str(args.out), "dtype": args.dtype},
    )
    return save_report(report, args.out)

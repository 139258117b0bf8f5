"""`seed-jax import tokenizer`: the official files of the image tokenizer to a model directory."""

import argparse
import logging

from seed_jax.cli.conversion_options import add_out_argument, add_verify_argument, save_report


def add_parser(kinds: argparse._SubParsersAction) -> None:
    """Add the subcommand `tokenizer`."""
    parser = kinds.add_parser(
        "tokenizer",
        help="SEED-2's image tokenizer",
        description="Convert the official files of SEED-2's image tokenizer to a model directory.",
    )
    model = parser.add_argument_group("model")
    model.add_argument("--quantizer", required=True, metavar="FILE", help="seed_quantizer.pt or .safetensors")
    model.add_argument("--vit", metavar="FILE", help="eva_vit_g.pth, unless the quantizer's file includes it")
    heads = parser.add_argument_group("numbers of attention heads, which the files do not state")
    heads.add_argument("--vit-heads", type=int, default=16, metavar="N", help="of the ViT (default: %(default)s)")
    heads.add_argument(
        "--qformer-heads", type=int, default=12, metavar="N", help="of the Q-Formers (default: %(default)s)"
    )
    heads.add_argument(
        "--decoder-heads", type=int, default=12, metavar="N", help="of the decoder blocks (default: %(default)s)"
    )
    output = parser.add_argument_group("output")
    add_out_argument(output, "model directory")
    add_verify_argument(output)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert the tokenizer and verify it on request; return the exit code."""
    from seed_jax.convert.tokenizer import official_import, parity  # deferred: --help needs no JAX

    imported = official_import.import_to_model_dir(
        args.quantizer,
        args.vit,
        args.out,
        vit_heads=args.vit_heads,
        qformer_heads=args.qformer_heads,
        decoder_heads=args.decoder_heads,
    )
    logging.info("Wrote the image tokenizer to %s.", args.out)
    if not args.verify:
        return 0
    report = parity.parity_report(
        "Import of an image tokenizer",
        args.out,
        [imported.tensors],
        importing=True,
        forward=args.verify == "full",
        facts={"from": imported.tensors.source, "to": str(args.out)},
    )
    return save_report(report, args.out)

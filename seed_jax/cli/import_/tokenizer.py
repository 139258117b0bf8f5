"""`seed-jax import tokenizer`: the official files of the image tokenizer to a model directory."""

import argparse
import logging

from seed_jax.cli.conversion_options import add_out_argument, add_verify_argument, save_report
from seed_jax.errors import UserError


def add_parser(kinds: argparse._SubParsersAction) -> None:
    """Add the subcommand `tokenizer`."""
    parser = kinds.add_parser(
        "tokenizer",
        help="an image tokenizer: SEED-2's, or SEED-1's with --seed1",
        description="Convert the official files of an image tokenizer, SEED-2's or SEED-1's, to a model directory.",
    )
    model = parser.add_argument_group("model")
    model.add_argument("--quantizer", metavar="FILE", help="SEED-2's seed_quantizer.pt or .safetensors")
    model.add_argument("--seed1", action="store_true", help="convert SEED-1's files: --qformer and --codebook")
    model.add_argument("--qformer", metavar="FILE", help="SEED-1's causal_qformer.pth or .safetensors (stage I)")
    model.add_argument("--codebook", metavar="FILE", help="SEED-1's seed_tokenizer.pth or .safetensors (stage II)")
    model.add_argument("--vit", metavar="FILE", help="eva_vit_g.pth, unless another file includes it")
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
    _check_files(args)
    from seed_jax.convert.tokenizer import official_import, parity  # deferred: --help needs no JAX

    heads = {name: getattr(args, name) for name in ("vit_heads", "qformer_heads", "decoder_heads")}
    if args.seed1:
        imported = official_import.import_seed1_to_model_dir(args.qformer, args.codebook, args.vit, args.out, **heads)
    else:
        imported = official_import.import_to_model_dir(args.quantizer, args.vit, args.out, **heads)
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


def _check_files(args: argparse.Namespace) -> None:
    """Refuse a missing file, and files of the other tokenizer."""
    needed, others = (
        (("qformer", "codebook"), ("quantizer",)) if args.seed1 else (("quantizer",), ("qformer", "codebook"))
    )
    missing = [f"--{name}" for name in needed if not getattr(args, name)]
    misplaced = [f"--{name}" for name in others if getattr(args, name)]
    if not missing and not misplaced:
        return
    problem = f"{' and '.join(missing)} missing" if missing else f"{' and '.join(misplaced)} given too"
    raise UserError(
        f"Files of the image tokenizer: {problem}; SEED-2 needs --quantizer, SEED-1 needs --seed1, --qformer and "
        "--codebook (both need --vit, unless another file includes the ViT)."
    )

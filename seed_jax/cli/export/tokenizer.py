"""`seed-jax export tokenizer`: an image tokenizer under the original's names."""

import argparse
import importlib.util
import logging
from pathlib import Path

from seed_jax.cli.verify_option import add_verify, finish
from seed_jax.files import new_directory
from seed_jax.precision import as_dtype

DTYPES = ("float32", "bfloat16", "float16")


def add_tokenizer(kinds: argparse._SubParsersAction) -> None:
    """Add the subcommand `tokenizer` to those of `seed-jax export`."""
    parser = kinds.add_parser("tokenizer", help="a seed_quantizer file", description=run.__doc__)
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="model directory or training workdir")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="number format (default %(default)s)")
    parser.add_argument(
        "--format",
        choices=("safetensors", "pt", "all"),
        default="all",
        help="safetensors, PyTorch's own, or (default) the former and, where PyTorch is installed, the latter",
    )
    vit = parser.add_mutually_exclusive_group()
    vit.add_argument("--without-vit", action="store_true", help="leave the image encoder out, as the original ships it")
    vit.add_argument("--vit-beside", action="store_true", help="write the image encoder to a file eva_vit_g beside")
    add_verify(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write `seed_quantizer` with the names that the original code loads."""
    from seed_jax.convert.tensors import open_tensors
    from seed_jax.convert.tokenizer import (
        official_export,
        parity,  # late: JAX takes a while to load
    )
    from seed_jax.convert.tokenizer.official_import import with_vit

    formats = official_export.FORMATS if args.format == "all" else (args.format,)
    if args.format == "all" and importlib.util.find_spec("torch") is None:
        logging.info("PyTorch is not installed: only safetensors are written.")
        formats = ("safetensors",)
    vit = "none" if args.without_vit else "beside" if args.vit_beside else "inside"
    official = official_export.open_official(args.model)
    with new_directory(args.out) as folder:
        written = official_export.write_tokenizer(folder, official, as_dtype(args.dtype), vit=vit, formats=formats)
    names = {kind: [path.name for path in paths] for kind, paths in written.items()}
    logging.info("Wrote %s to %s.", ", ".join(name for group in names.values() for name in group), args.out)
    if not args.verify:
        return 0
    files = [with_vit(*(open_tensors(args.out / name) for name in group)) for group in names.values()]
    facts = {"from": str(args.model), "to": str(args.out), "number format": args.dtype}
    title, forward = "Export of an image tokenizer", args.verify == "full"
    report = parity.report(title, args.model, files, importing=False, forward=forward, facts=facts)
    return finish(report, args.out)

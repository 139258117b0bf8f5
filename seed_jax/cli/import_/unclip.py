"""`seed-jax import unclip`: a diffusers folder of the unCLIP decoder to a model directory."""

import argparse
import tempfile
from pathlib import Path

from seed_jax.checkpoint import model_dir
from seed_jax.cli.verify_option import add_verify, finish
from seed_jax.files import check_vacant

DTYPES = ("float32", "bfloat16", "float16")


def add_unclip(kinds: argparse._SubParsersAction) -> None:
    """Add the subcommand `unclip` to those of `seed-jax import`."""
    parser = kinds.add_parser("unclip", help="the unCLIP Stable Diffusion decoder", description=run.__doc__)
    parser.add_argument("--from", dest="source", required=True, type=Path, metavar="DIFFUSERS_DIR")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="model directory to write")
    parser.add_argument("--variant", help="weight files to take, such as fp16 (default: the full ones)")
    parser.add_argument("--dtype", choices=DTYPES, help="number format to store (default: as in the files)")
    add_verify(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read a folder such as stable-diffusion-2-1-unclip, strictly, and write it as a model directory."""
    from seed_jax.convert.diffusion import (
        diffusers_import,
        parity,  # late: JAX takes a while to load
    )

    check_vacant(args.out)
    found = diffusers_import.open_unclip(args.source, variant=args.variant, dtype=args.dtype)
    with tempfile.TemporaryDirectory() as folder:
        files = {path.name: path for path in found.vocabulary.save(folder)}
        provenance = {"from": str(args.source), "variant": args.variant}
        sizes = {"sizes": found.config.to_dict()}
        model_dir.save(args.out, diffusers_import.KIND, sizes, found.params, files=files, provenance=provenance)
    print(f"{args.out}: unCLIP decoder for {found.config.image_size} pixels, sampler {found.config.sampler}")
    if not args.verify:
        return 0
    title, forward = "Import of an unCLIP decoder", args.verify == "full"
    facts = {"from": str(args.source), "to": str(args.out), "variant": str(args.variant)}
    params = model_dir.open_lazily(args.out, diffusers_import.KIND).params
    report = parity.report(
        title, args.source, params, importing=True, forward=forward, variant=args.variant, facts=facts
    )
    return finish(report, args.out)

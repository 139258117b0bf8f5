"""`seed-jax export unclip`: the unCLIP decoder as a folder that PyTorch diffusers loads."""

import argparse
from pathlib import Path

from seed_jax.checkpoint import model_dir
from seed_jax.cli.verify_option import add_verify, finish

DTYPES = ("float32", "bfloat16", "float16")


def add_unclip(kinds: argparse._SubParsersAction) -> None:
    """Add the subcommand `unclip` to those of `seed-jax export`."""
    parser = kinds.add_parser("unclip", help="a folder that diffusers loads", description=run.__doc__)
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="model directory or training workdir")
    parser.add_argument("--out", required=True, type=Path, metavar="DIFFUSERS_DIR", help="folder to write")
    parser.add_argument("--dtype", choices=DTYPES, help="number format of the weights (default: as stored)")
    parser.add_argument(
        "--image-encoder", type=Path, metavar="DIFFUSERS_DIR", help="copy image encoder and feature extractor from here"
    )
    add_verify(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the decoder as a diffusers folder.

    The original pipeline also asks for an image encoder, which drawing from embeddings does not need: take it from the
    original folder with --image-encoder, or load with `image_encoder=None, feature_extractor=None`.
    """
    from seed_jax.convert.diffusion import (
        diffusers_export,
        parity,  # late: JAX takes a while to load
    )
    from seed_jax.convert.diffusion.diffusers_import import KIND
    from seed_jax.data.text.clip import ClipVocabulary
    from seed_jax.models.diffusion import UnclipConfig

    found = model_dir.open_lazily(args.model, KIND)
    config = UnclipConfig.from_dict(found.config.get("sizes", {}), str(found.directory / model_dir.CONFIG))
    vocabulary = ClipVocabulary.load(found.directory)
    diffusers_export.export_unclip(
        config, found.params, vocabulary, args.out, dtype=args.dtype, image_side=args.image_encoder
    )
    print(f"{args.out}: a diffusers folder of class {diffusers_export.PIPELINE}")
    if not args.verify:
        return 0
    title, forward = "Export of an unCLIP decoder", args.verify == "full"
    facts = {"from": str(args.model), "to": str(args.out)}
    report = parity.report(title, args.out, found.params, importing=False, forward=forward, facts=facts)
    return finish(report, args.out)

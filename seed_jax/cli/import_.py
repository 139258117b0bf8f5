"""`seed-jax import`: official files to a model directory, one function a kind of model."""

import argparse
import logging
import tempfile
from pathlib import Path

import numpy as np

from seed_jax.cli.import_llama import add_llama
from seed_jax.cli.import_unclip import add_unclip
from seed_jax.errors import UserError


def add_parser(subparsers) -> None:
    """Add one subcommand a kind."""
    parser = subparsers.add_parser("import", help="official files to a model directory")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for add in (add_tokenizer, add_llama, add_unclip):
        add(kinds)


def add_tokenizer(kinds) -> None:
    """Add `import tokenizer`."""
    parser = kinds.add_parser("tokenizer", help="SEED-2's image tokenizer", description=import_tokenizer.__doc__)
    parser.add_argument("--quantizer", required=True, metavar="FILE", help="seed_quantizer.pt or .safetensors")
    parser.add_argument("--vit", metavar="FILE", help="eva_vit_g.pth, unless the quantizer's file holds it too")
    parser.add_argument("--out", required=True, metavar="DIR", help="model directory to write")
    heads = parser.add_argument_group("numbers of attention heads, which the files do not tell")
    heads.add_argument("--vit-heads", type=int, default=16, help="of the image encoder (default %(default)s)")
    heads.add_argument("--qformer-heads", type=int, default=12, help="of the Q-Formers (default %(default)s)")
    heads.add_argument("--decoder-heads", type=int, default=12, help="of the decoder blocks (default %(default)s)")
    parser.set_defaults(run=import_tokenizer)


def import_tokenizer(args: argparse.Namespace) -> None:
    """Read the original's tokenizer weights, strictly, and write them as a model directory."""
    from seed_jax.checkpoint import model_dir
    from seed_jax.convert import tokenizer
    from seed_jax.convert.safetensors_writer import write_safetensors

    _refuse_occupied(Path(args.out))  # before minutes of reading
    found = tokenizer.import_tokenizer(
        args.quantizer,
        args.vit,
        vit_heads=args.vit_heads,
        qformer_heads=args.qformer_heads,
        decoder_heads=args.decoder_heads,
    )
    provenance = {"quantizer": args.quantizer, "vit": args.vit, "unknown": found.unknown}
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        if found.extras:
            files["extras.safetensors"] = Path(folder) / "extras.safetensors"
            shapes = {name: tensor.shape for name, tensor in found.extras.items()}
            tensors = ((name, tensor.read()) for name, tensor in found.extras.items())
            write_safetensors(files["extras.safetensors"], shapes, np.dtype(np.float32), tensors)
            logging.info("Set %d tensors of the text side aside in extras.safetensors.", len(shapes))
        sizes = {"sizes": found.config.to_dict()}
        model_dir.save(args.out, "seed_tokenizer", sizes, found.params, files=files, provenance=provenance)
    logging.info("Wrote the image tokenizer to %s.", args.out)


def _refuse_occupied(directory: Path) -> None:
    if directory.is_file() or (directory.is_dir() and any(directory.iterdir())):
        raise UserError(f"{directory} exists and is not empty: choose another --out or remove it.")

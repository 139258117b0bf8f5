"""`seed-jax import tokenizer`: the original's tokenizer files to a model directory."""

import argparse
import logging
import tempfile
from pathlib import Path

import numpy as np

from seed_jax.checkpoint import model_dir
from seed_jax.cli.verify_option import add_verify, finish
from seed_jax.files import check_vacant


def add_tokenizer(kinds: argparse._SubParsersAction) -> None:
    """Add the subcommand `tokenizer` to those of `seed-jax import`."""
    parser = kinds.add_parser("tokenizer", help="SEED-2's image tokenizer", description=run.__doc__)
    parser.add_argument("--quantizer", required=True, metavar="FILE", help="seed_quantizer.pt or .safetensors")
    parser.add_argument("--vit", metavar="FILE", help="eva_vit_g.pth, unless the quantizer's file holds it too")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="model directory to write")
    heads = parser.add_argument_group("numbers of attention heads, which the files do not tell")
    heads.add_argument("--vit-heads", type=int, default=16, help="of the image encoder (default %(default)s)")
    heads.add_argument("--qformer-heads", type=int, default=12, help="of the Q-Formers (default %(default)s)")
    heads.add_argument("--decoder-heads", type=int, default=12, help="of the decoder blocks (default %(default)s)")
    add_verify(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read the original's tokenizer weights, strictly, and write them as a model directory."""
    from seed_jax.convert.tokenizer import (
        official_import,
        parity,  # late: JAX takes a while to load
    )
    from seed_jax.convert.tokenizer.official_export import EXTRAS, KIND

    check_vacant(args.out)  # before minutes of reading
    heads = {name: getattr(args, name) for name in ("vit_heads", "qformer_heads", "decoder_heads")}
    found = official_import.open_tokenizer(args.quantizer, args.vit, **heads)
    provenance = {"quantizer": args.quantizer, "vit": args.vit, "unknown": found.unknown}
    with tempfile.TemporaryDirectory() as folder:
        files = {EXTRAS: _set_aside(found, Path(folder) / EXTRAS)} if found.extras else {}
        sizes = {"sizes": found.config.to_dict()}
        model_dir.save(args.out, KIND, sizes, found.params, files=files, provenance=provenance)
    logging.info("Wrote the image tokenizer to %s.", args.out)
    if not args.verify:
        return 0
    facts = {"from": found.tensors.where, "to": str(args.out)}
    title, forward = "Import of an image tokenizer", args.verify == "full"
    report = parity.report(title, args.out, [found.tensors], importing=True, forward=forward, facts=facts)
    return finish(report, args.out)


def _set_aside(found, path: Path) -> Path:
    """Write the tensors that the image tokenizer does not use, but retrieval and the text branch do."""
    from seed_jax.convert.safetensors_writer import write_safetensors

    shapes = {name: tensor.shape for name, tensor in found.extras.items()}
    write_safetensors(path, shapes, np.dtype(np.float32), ((n, tensor.read()) for n, tensor in found.extras.items()))
    logging.info("Set %d tensors of the text side aside in %s.", len(shapes), path.name)
    return path

"""`seed-jax import opt`: a Hugging Face OPT, with its text tokenizer, to a model directory."""

import argparse
from pathlib import Path

from seed_jax.cli.conversion_options import DTYPES, add_out_argument


def add_parser(kinds: argparse._SubParsersAction) -> None:
    """Add the subcommand `opt`."""
    parser = kinds.add_parser(
        "opt",
        help="SEED-1's language model",
        description="Convert a Hugging Face OPT, with a text tokenizer, to a model directory.",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--from", dest="source", required=True, type=Path, metavar="HF_DIR", help="directory of a Hugging Face model"
    )
    model.add_argument("--vocabulary", type=Path, metavar="DIR", help="text tokenizer's files (default: HF_DIR)")
    model.add_argument("--tokenizer", type=Path, metavar="DIR", help="image tokenizer that belongs to the model")
    model.add_argument("--decoder", type=Path, metavar="DIR", help="image decoder that belongs to the model")
    output = parser.add_argument_group("output")
    add_out_argument(output, "model directory")
    output.add_argument("--dtype", choices=DTYPES, help="dtype to store (default: as in the files)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert the model; return the exit code."""
    from seed_jax.convert.opt import model_import  # deferred: --help needs no JAX

    opt = model_import.import_to_model_dir(
        args.source,
        args.out,
        vocabulary=args.vocabulary,
        image_tokenizer=args.tokenizer,
        decoder=args.decoder,
        dtype=args.dtype,
    )
    print(f"{args.out}: OPT with {opt.config.num_layers} layers and {opt.config.vocab_size} tokens")
    return 0

"""`seed-jax import opt`: a Hugging Face OPT, with its text tokenizer, to a model directory."""

import argparse

from seed_jax.cli.conversion_options import (
    AS_IN_FILES,
    add_dtype_argument,
    add_language_model_arguments,
    add_out_argument,
)


def add_parser(kinds: argparse._SubParsersAction) -> None:
    """Add the subcommand `opt`."""
    parser = kinds.add_parser(
        "opt",
        help="SEED-1's language model",
        description="Convert a Hugging Face OPT, with a text tokenizer, to a model directory.",
    )
    add_language_model_arguments(parser.add_argument_group("model"))
    output = parser.add_argument_group("output")
    add_out_argument(output, "model directory")
    add_dtype_argument(output, AS_IN_FILES)
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

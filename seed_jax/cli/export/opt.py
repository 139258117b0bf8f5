"""`seed-jax export opt`: an OPT as a Hugging Face directory, with its adapters merged."""

import argparse
import logging

from seed_jax.cli.conversion_options import (
    WIDEST,
    add_dtype_argument,
    add_model_argument,
    add_out_argument,
    add_shard_size_argument,
)


def add_parser(kinds: argparse._SubParsersAction) -> None:
    """Add the subcommand `opt`."""
    parser = kinds.add_parser(
        "opt",
        help="SEED-1's language model, for transformers",
        description="Convert an OPT to a directory that PyTorch's transformers loads; adapters are merged.",
    )
    add_model_argument(parser.add_argument_group("model"))
    output = parser.add_argument_group("output")
    add_out_argument(output, "directory")
    add_dtype_argument(output, WIDEST)
    add_shard_size_argument(output)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert the model; return the exit code."""
    from seed_jax.convert.llama.hf_export import parse_size  # deferred: --help needs no JAX
    from seed_jax.convert.opt.hf_export import export_opt

    export_opt(args.model, args.out, dtype=args.dtype, max_shard_size=parse_size(args.max_shard_size))
    logging.info("Wrote the language model to %s.", args.out)
    return 0

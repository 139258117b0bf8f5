"""`seed-jax export llama`: a language model as a Hugging Face directory, with its adapters merged or separate."""

import argparse

from seed_jax.cli.language_model_conversion import add_export_arguments, export_language_model


def add_parser(kinds: argparse._SubParsersAction) -> None:
    """Add the subcommand `llama`."""
    parser = kinds.add_parser(
        "llama",
        help="a language model, for transformers and peft",
        description="Convert a language model to a directory that PyTorch's transformers loads.",
    )
    add_export_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert the model and verify it on request; return the exit code."""
    from seed_jax.convert.llama.hf_export import LLAMA  # deferred: --help needs no JAX

    return export_language_model(LLAMA, args)

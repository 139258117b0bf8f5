"""`seed-jax import llama`: a Hugging Face LLaMA, with its text tokenizer, to a model directory."""

import argparse

from seed_jax.cli.language_model_conversion import add_import_arguments, import_language_model


def add_parser(kinds: argparse._SubParsersAction) -> None:
    """Add the subcommand `llama`."""
    parser = kinds.add_parser(
        "llama",
        help="a language model",
        description="Convert a Hugging Face LLaMA, with a LoRA adapter and a text tokenizer, to a model directory.",
    )
    add_import_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert the model and verify it on request; return the exit code."""
    from seed_jax.convert.llama.hf_export import LLAMA  # deferred: --help needs no JAX

    return import_language_model(LLAMA, "LLaMA", args)

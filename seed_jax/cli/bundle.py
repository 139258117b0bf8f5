"""`seed-jax bundle`: one directory that names a language model, its image tokenizer and its decoder."""

import argparse
from pathlib import Path

from seed_jax.cli.generation_options import PROMPT_STYLES


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "bundle",
        help="join a language model, an image tokenizer and a decoder in one directory",
        description="Write a directory that names the parts of a SEED-LLaMA, so that commands need --model alone. "
        "The parts stay where they are; paths are relative, so that all can be moved together.",
    )
    parts = parser.add_argument_group("parts")
    parts.add_argument("--model", required=True, type=Path, metavar="DIR", help="language model")
    parts.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="image tokenizer (default: the one that the language model names)"
    )
    parts.add_argument(
        "--decoder", type=Path, metavar="DIR", help="image decoder (default: the one that the language model names)"
    )
    parts.add_argument(
        "--style", choices=PROMPT_STYLES, help="prompt style (default: the one that the language model names)"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--out", required=True, type=Path, metavar="DIR", help="directory to write")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the bundle and print what it names."""
    from seed_jax.files import check_vacant  # deferred: --help needs no JAX
    from seed_jax.inference.language_model import read_references, write_bundle

    check_vacant(args.out)
    write_bundle(
        args.out,
        language_model=args.model,
        image_tokenizer=args.tokenizer,
        decoder=args.decoder,
        prompt_style=args.style,
    )
    references = read_references(args.out)
    print(f"{args.out}: language model {references.language_model}")
    print(f"  image tokenizer {references.image_tokenizer or 'none: images cannot be shown to the model'}")
    print(f"  decoder {references.decoder or 'none: images of answers cannot be drawn'}")
    print(f"  prompt style {references.prompt_style or 'base'}")

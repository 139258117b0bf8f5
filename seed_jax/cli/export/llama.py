"""`seed-jax export llama`: a language model as a Hugging Face directory or a GGUF file."""

import argparse
import logging

from seed_jax.cli.conversion_options import (
    DTYPES,
    WIDEST,
    add_model_argument,
    add_out_argument,
    add_shard_size_argument,
    add_verify_argument,
    save_report,
)
from seed_jax.errors import UserError

Q8_0 = "q8_0"


def add_parser(kinds: argparse._SubParsersAction) -> None:
    """Add the subcommand `llama`."""
    parser = kinds.add_parser(
        "llama",
        help="a language model, for transformers and peft, or llama.cpp",
        description="Convert a language model to a directory that PyTorch's transformers loads, or to a GGUF file.",
    )
    model = parser.add_argument_group("model")
    add_model_argument(model)
    form = model.add_mutually_exclusive_group()
    form.add_argument(
        "--merged", dest="form", action="store_const", const="merged", default="merged",
        help="write one model with the adapters merged in (default)",
    )  # fmt: skip
    form.add_argument(
        "--peft", dest="form", action="store_const", const="peft",
        help="write the base model to DIR/base and a peft adapter to DIR/adapter",
    )  # fmt: skip
    form.add_argument(
        "--adapter-only", dest="form", action="store_const", const="adapter", help="write the peft adapter alone"
    )
    model.add_argument("--base", metavar="NAME", help="base model that the adapter's config names")
    output = parser.add_argument_group("output")
    add_out_argument(output, "directory, or .gguf file,")
    output.add_argument(
        "--format", choices=("huggingface", "gguf"), default="huggingface", help="default: %(default)s"
    )  # fmt: skip
    output.add_argument(
        "--dtype", choices=(*DTYPES, Q8_0), help=f"dtype to store (default: {WIDEST}; gguf: float16; q8_0: gguf only)"
    )
    add_shard_size_argument(output)
    add_verify_argument(output)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert the model and verify it on request; return the exit code."""
    from seed_jax.convert.llama import gguf_export, hf_export, parity  # deferred: --help needs no JAX

    if args.format == "gguf":
        if args.form != "merged" or args.verify or args.base:
            raise UserError(
                "A GGUF file holds the merged model: leave out --peft, --adapter-only, --base and --verify."
            )
        gguf_export.export_gguf(args.model, args.out, dtype=args.dtype or "float16")
        logging.info("Wrote the language model to %s.", args.out)
        return 0
    if args.dtype == Q8_0:
        raise UserError("--dtype q8_0 is a format of GGUF files: add --format gguf.")
    hf_export.export_llama(
        args.model,
        args.out,
        form=args.form,
        dtype=args.dtype,
        max_shard_size=hf_export.parse_size(args.max_shard_size),
        base=args.base,
    )
    logging.info("Wrote the language model to %s.", args.out)
    if not args.verify:
        return 0
    forward = args.verify == "full"
    report = parity.export_report(args.model, args.out, form=args.form, dtype=args.dtype, forward=forward)
    return save_report(report, args.out)

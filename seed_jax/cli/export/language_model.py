"""`seed-jax export llama` and `export opt`: a language model as a Hugging Face directory, or a LLaMA as GGUF file."""

import argparse
import logging

from seed_jax.cli.conversion_options import (
    DTYPES,
    WIDEST,
    add_dtype_argument,
    add_model_argument,
    add_out_argument,
    add_shard_size_argument,
    add_verify_argument,
    save_report,
)
from seed_jax.cli.import_.language_model import ARCHITECTURES, layout_of
from seed_jax.errors import UserError
from seed_jax.sizes import parse_size

GGUF, Q8_0 = "gguf", "q8_0"


def add_parser(kinds: argparse._SubParsersAction) -> None:
    """Add a subcommand for each architecture."""
    for kind, (summary, name, _) in ARCHITECTURES.items():
        text = f"Convert {'a' if name == 'LLaMA' else 'an'} {name} to a directory that PyTorch's transformers loads."
        parser = kinds.add_parser(kind, help=f"{summary}, for transformers and peft", description=text)
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
        if kind == "llama":
            add_out_argument(output, "directory, or .gguf file,")
            output.add_argument(
                "--format", choices=("huggingface", GGUF), default="huggingface", help="default: %(default)s"
            )
            text = f"dtype to store (default: {WIDEST}; {GGUF}: float16; {Q8_0}: {GGUF} only)"
            output.add_argument("--dtype", choices=(*DTYPES, Q8_0), help=text)
        else:
            add_out_argument(output, "directory")
            add_dtype_argument(output, WIDEST)
        add_shard_size_argument(output)
        add_verify_argument(output)
        parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert the model and verify it on request; return the exit code."""
    from seed_jax.convert.hugging_face import export, parity  # deferred: --help needs no JAX

    if getattr(args, "format", None) == GGUF:
        return _export_gguf(args)
    if args.dtype == Q8_0:
        raise UserError(f"--dtype {Q8_0} is a format of GGUF files: add --format gguf.")
    layout = layout_of(args.kind)
    export.export_language_model(
        layout,
        args.model,
        args.out,
        form=args.form,
        dtype=args.dtype,
        max_shard_size=parse_size(args.max_shard_size),
        base=args.base,
    )
    logging.info("Wrote the language model to %s.", args.out)
    if not args.verify:
        return 0
    forward = args.verify == "full"
    report = parity.export_report(layout, args.model, args.out, form=args.form, dtype=args.dtype, forward=forward)
    return save_report(report, args.out)


def _export_gguf(args: argparse.Namespace) -> int:
    from seed_jax.convert.llama import gguf_export

    if args.form != "merged" or args.verify or args.base:
        raise UserError("A GGUF file holds the merged model: leave out --peft, --adapter-only, --base and --verify.")
    gguf_export.export_gguf(args.model, args.out, dtype=args.dtype or "float16")
    logging.info("Wrote the language model to %s.", args.out)
    return 0

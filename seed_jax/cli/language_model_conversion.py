"""What `seed-jax import` and `seed-jax export` do alike for every architecture of language models."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from seed_jax.cli.conversion_options import (
    AS_IN_FILES,
    WIDEST,
    add_dtype_argument,
    add_language_model_arguments,
    add_model_argument,
    add_out_argument,
    add_shard_size_argument,
    add_verify_argument,
    save_report,
)
from seed_jax.cli.generation_options import PROMPT_STYLES
from seed_jax.sizes import parse_size

if TYPE_CHECKING:  # imports JAX, which --help must not wait for
    from seed_jax.convert.hugging_face.layout import HuggingFaceLayout


def add_import_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `seed-jax import llama` and `import opt`."""
    model = parser.add_argument_group("model")
    add_language_model_arguments(model)
    model.add_argument("--adapter", type=Path, metavar="PEFT_DIR", help="LoRA adapter to merge into the model")
    model.add_argument("--unmerged", action="store_true", help="keep the adapter separate, as training does")
    model.add_argument(
        "--style", choices=PROMPT_STYLES, help="prompt style that the model was tuned with (default: base)"
    )
    output = parser.add_argument_group("output")
    add_out_argument(output, "model directory")
    add_dtype_argument(output, AS_IN_FILES)
    add_verify_argument(output)


def import_language_model(layout: "HuggingFaceLayout", name: str, args: argparse.Namespace) -> int:
    """Convert the model and verify it on request; return the exit code."""
    from seed_jax.convert.hugging_face import model_import, parity

    config = model_import.import_to_model_dir(
        layout,
        args.source,
        args.out,
        adapter=args.adapter,
        unmerged=args.unmerged,
        vocabulary=args.vocabulary,
        image_tokenizer=args.tokenizer,
        decoder=args.decoder,
        prompt_style=args.style,
        dtype=args.dtype,
    )
    print(f"{args.out}: {name} with {config.num_layers} layers and {config.vocab_size} tokens")
    if not args.verify:
        return 0
    report = parity.import_report(layout, args.source, args.out, adapter=args.adapter, forward=args.verify == "full")
    return save_report(report, args.out)


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `seed-jax export llama` and `export opt`."""
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
    add_out_argument(output, "directory")
    add_dtype_argument(output, WIDEST)
    add_shard_size_argument(output)
    add_verify_argument(output)


def export_language_model(layout: "HuggingFaceLayout", args: argparse.Namespace) -> int:
    """Convert the model and verify it on request; return the exit code."""
    from seed_jax.convert.hugging_face import export, parity

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

"""`seed-jax import llama` and `seed-jax import opt`: a Hugging Face language model to a model directory."""

import argparse
import importlib
from pathlib import Path

from seed_jax.cli.conversion_options import (
    AS_IN_FILES,
    add_dtype_argument,
    add_language_model_arguments,
    add_out_argument,
    add_verify_argument,
    save_report,
)
from seed_jax.cli.generation_options import PROMPT_STYLES

# Subcommand -> summary, name of the architecture, and where its `HuggingFaceLayout` is; imported late: it needs JAX.
ARCHITECTURES = {
    "llama": ("a language model", "LLaMA", "seed_jax.convert.llama.hf_export:LLAMA"),
    "opt": ("SEED-1's language model", "OPT", "seed_jax.convert.opt.hf_export:OPT"),
}


def add_parser(kinds: argparse._SubParsersAction) -> None:
    """Add a subcommand for each architecture."""
    for kind, (summary, name, _) in ARCHITECTURES.items():
        text = f"Convert a Hugging Face {name}, with a LoRA adapter and a text tokenizer, to a model directory."
        parser = kinds.add_parser(kind, help=summary, description=text)
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
        parser.set_defaults(run=run)


def layout_of(kind: str):
    """Return the `HuggingFaceLayout` of a subcommand's architecture."""
    module, _, name = ARCHITECTURES[kind][2].partition(":")
    return getattr(importlib.import_module(module), name)


def run(args: argparse.Namespace) -> int:
    """Convert the model and verify it on request; return the exit code."""
    from seed_jax.convert.hugging_face import model_import, parity  # deferred: --help needs no JAX

    layout, name = layout_of(args.kind), ARCHITECTURES[args.kind][1]
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

"""`seed-jax import llama`: a Hugging Face LLaMA, with its text tokenizer, to a model directory."""

import argparse
import logging
import os
from pathlib import Path

from seed_jax.checkpoint import model_dir
from seed_jax.convert.llama import import_llama
from seed_jax.convert.peft import import_adapter
from seed_jax.data.vocab import Vocabulary
from seed_jax.errors import UserError
from seed_jax.models.llama import LlamaConfig

KIND = "llama"
TOKENIZER_FILES = ("tokenizer.model", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json")


def add_llama(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand `llama` to those of `seed-jax import`."""
    parser = subparsers.add_parser("llama", help=__doc__)
    parser.add_argument("--from", dest="source", required=True, type=Path, metavar="HF_DIR", help="Hugging Face model")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="model directory to write")
    parser.add_argument("--adapter", type=Path, metavar="PEFT_DIR", help="merge these LoRA weights into it")
    parser.add_argument("--vocabulary", type=Path, metavar="DIR", help="text tokenizer files (default: HF_DIR)")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="image tokenizer that the model goes with")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as in the files")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Read, check, merge, write."""
    model_dir.check_vacant(args.out)
    imported = import_llama(args.source, args.dtype)
    files = vocabulary_files(args.vocabulary or args.source, imported.config)
    params, provenance = imported.params, {"from": str(args.source)}
    if args.adapter:
        params = import_adapter(args.adapter, imported.config).merge(params)
        provenance["adapter"] = str(args.adapter)
    config = {"sizes": imported.config.to_dict(), "image_tokenizer": _relative(args.tokenizer, args.out)}
    model_dir.save(args.out, KIND, config, params, files=files, provenance=provenance)
    print(f"{args.out}: LLaMA with {imported.config.num_layers} layers and {imported.config.vocab_size} tokens")


def vocabulary_files(directory: Path, config: LlamaConfig) -> dict[str, Path]:
    """Return the tokenizer files to copy; none for a base model, whose vocabulary has no image tokens yet."""
    if not (directory / "added_tokens.json").exists():
        logging.warning(
            "%s has no added_tokens.json: a model without image tokens can start a training run (model.init), but not "
            "generate. Give the tokenizer of a SEED-LLaMA with --vocabulary if this is one.",
            directory,
        )
        return {}
    vocabulary = Vocabulary.load(directory)
    if vocabulary.size != config.vocab_size:
        raise UserError(
            f"{directory} has a vocabulary of {vocabulary.size} tokens but the model has {config.vocab_size}: give the "
            "model's own tokenizer with --vocabulary."
        )
    return {name: directory / name for name in TOKENIZER_FILES if (directory / name).exists()}


def _relative(tokenizer: Path | None, out: Path) -> str | None:
    # Relative to config.json, so that both directories can be moved together.
    return os.path.relpath(tokenizer.resolve(), out.resolve()) if tokenizer else None

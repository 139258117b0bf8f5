"""`seed-jax import llama`: a Hugging Face LLaMA, with its text tokenizer, to a model directory."""

import argparse
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from seed_jax.checkpoint import model_dir
from seed_jax.cli.verify_option import add_verify, finish
from seed_jax.convert.key_table import open_ours
from seed_jax.convert.llama import parity
from seed_jax.convert.llama.hf_import import open_llama
from seed_jax.convert.llama.key_table import key_table
from seed_jax.convert.llama.peft import adapter_table, import_adapter
from seed_jax.convert.llama.source import KIND, TOKENIZER_FILES, open_source
from seed_jax.convert.merging import converted
from seed_jax.convert.parity import make_report
from seed_jax.convert.tensors import Tensors
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from seed_jax.files import check_vacant
from seed_jax.models.llama.model import LlamaConfig
from seed_jax.precision import as_dtype


def add_llama(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand `llama` to those of `seed-jax import`."""
    parser = subparsers.add_parser("llama", help=__doc__)
    parser.add_argument("--from", dest="source", required=True, type=Path, metavar="HF_DIR", help="Hugging Face model")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="model directory to write")
    parser.add_argument("--adapter", type=Path, metavar="PEFT_DIR", help="LoRA weights to merge into it")
    parser.add_argument("--unmerged", action="store_true", help="keep the adapter apart, as training does")
    parser.add_argument("--vocabulary", type=Path, metavar="DIR", help="text tokenizer files (default: HF_DIR)")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="image tokenizer that the model goes with")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as in the files")
    add_verify(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read, check, merge, write, a tensor at a time."""
    check_vacant(args.out)
    if args.unmerged and not args.adapter:
        raise UserError("--unmerged keeps an adapter apart from its base: give one with --adapter.")
    # With an adapter, rounding is left to the end: sums are made in float32.
    imported = open_llama(args.source, None if args.adapter else args.dtype)
    config, params, settings, provenance = imported.config, imported.params, {}, {"from": str(args.source)}
    if args.adapter:
        adapter = import_adapter(args.adapter, config)
        config, provenance["adapter"] = adapter.config, str(args.adapter)
        if args.unmerged:
            params = {"params": adapter.adapt(params), "lora": adapter.adapters}
            params = converted(params, as_dtype(args.dtype)) if args.dtype else params
            settings = {"lora": {name: getattr(adapter.spec, name) for name in ("rank", "alpha", "dropout")}}
        else:
            params = adapter.merge(params, args.dtype)
    files = vocabulary_files(args.vocabulary or args.source, config)
    sizes = {"sizes": config.to_dict(), "image_tokenizer": _relative(args.tokenizer, args.out)}
    model_dir.save(args.out, KIND, {**sizes, **settings}, params, files=files, provenance=provenance)
    print(f"{args.out}: LLaMA with {config.num_layers} layers and {config.vocab_size} tokens")
    return _verify(args, imported.tensors, params) if args.verify else 0


def _verify(args: argparse.Namespace, files: Tensors, params: dict[str, Any]) -> int:
    """Compare the model directory with the files it came from, or with the sum of base and adapter."""
    source = open_source(args.out)
    table, stored = key_table(source.config), str(args.out)
    ours = open_ours(table, source.params, stored)
    before = open_ours(table, params.get("params", params), "base and adapter") if args.adapter else files
    pairs = [(Tensors({name: before[name] for name in ours}, before.where), ours)]
    if args.unmerged:
        low_rank = adapter_table(source.config, source.spec)
        pairs.append((open_ours(low_rank, params["lora"], "adapter"), open_ours(low_rank, source.adapters, stored)))

    formats = {"dtype": source.dtype}
    if args.unmerged:
        formats = {"dtype": np.dtype(np.float32), "adapter_dtype": source.dtype}

    def forward():
        whole = source.merged()
        return parity.forward_checks(source.config, whole, args.source, adapter=args.adapter, **formats)

    report = make_report(
        "Import of a language model",
        {
            "from": str(args.source),
            "adapter": str(args.adapter),
            "to": str(args.out),
            "number format": str(source.dtype),
        },
        pairs,
        forward if args.verify == "full" else None,
        needs=["torch", "transformers", *(["peft"] if args.adapter else [])],
        what="logits",
    )
    return finish(report, args.out)


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

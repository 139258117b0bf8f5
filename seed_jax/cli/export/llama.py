"""`seed-jax export llama`: a language model as a Hugging Face directory, with its adapters merged or apart."""

import argparse
import logging
from pathlib import Path

import numpy as np

from seed_jax.cli.verify_option import add_verify, finish
from seed_jax.errors import UserError
from seed_jax.files import new_directory
from seed_jax.precision import as_dtype

DTYPES = ("float32", "bfloat16", "float16")
BASE, ADAPTER = "base", "adapter"  # folders that --peft writes


def add_llama(kinds: argparse._SubParsersAction) -> None:
    """Add the subcommand `llama` to those of `seed-jax export`."""
    parser = kinds.add_parser("llama", help="a directory that transformers loads", description=run.__doc__)
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="model directory or training workdir")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument("--dtype", choices=DTYPES, help="number format (default: the widest of what is stored)")
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="of a file (default %(default)s)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--merged", action="store_true", help="one model with the adapters added in (default)")
    form.add_argument(
        "--peft", action="store_true", help=f"the base model in DIR/{BASE} and a peft adapter in DIR/{ADAPTER}"
    )
    form.add_argument("--adapter-only", action="store_true", help="the peft adapter alone")
    parser.add_argument("--base", metavar="NAME", help="what the adapter's config calls its base model")
    add_verify(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write a language model for PyTorch's transformers, a tensor at a time, the vocabulary's padding cut off."""
    from seed_jax.convert.llama import (
        hf_export,
        peft,  # late: JAX takes a while to load
    )
    from seed_jax.convert.llama import source as llama_source

    limit = hf_export.parse_size(args.max_shard_size)
    source = llama_source.open_source(args.model)
    dtype = as_dtype(args.dtype) if args.dtype else source.dtype
    if (args.peft or args.adapter_only) and not source.adapters:
        raise UserError(f"{args.model} holds no adapters apart from the model: export it --merged.")
    with new_directory(args.out) as folder:
        if args.peft:
            for name in (BASE, ADAPTER):
                (folder / name).mkdir()
            hf_export.write_llama(folder / BASE, source, source.params, dtype, limit)
            peft.write_adapter(folder / ADAPTER, source, dtype, args.base or str(args.out / BASE))
        elif args.adapter_only:
            peft.write_adapter(folder, source, dtype, args.base)
        else:
            hf_export.write_llama(folder, source, source.merged(), dtype, limit)
    if not source.files:
        logging.warning("%s has no text tokenizer: copy its files into %s.", args.model, args.out)
    logging.info("Wrote the language model to %s.", args.out)
    return _verify(args, source, dtype) if args.verify else 0


def _verify(args: argparse.Namespace, source, dtype: np.dtype) -> int:
    from seed_jax.convert.key_table import open_ours
    from seed_jax.convert.llama import parity
    from seed_jax.convert.llama.hf_import import weight_files
    from seed_jax.convert.llama.key_table import key_table
    from seed_jax.convert.llama.peft import adapter_tensors
    from seed_jax.convert.parity import make_report
    from seed_jax.convert.tensors import open_tensors

    apart, pairs = args.peft or args.adapter_only, []
    base = args.out / BASE if args.peft else args.out
    adapter = args.out / ADAPTER if args.peft else args.out
    if not args.adapter_only:
        params = source.params if apart else source.merged()
        ours = open_ours(key_table(source.config), params, str(args.model))
        pairs.append((ours, open_tensors(weight_files(base))))
    if apart:
        pairs.append((adapter_tensors(source), open_tensors(adapter / "adapter_model.safetensors")))

    def forward():
        if not apart:
            return parity.forward_checks(source.config, source.merged(), base, dtype=dtype)
        whole = source.rounded(dtype).merged()
        return parity.forward_checks(source.config, whole, base, adapter=adapter, dtype=np.dtype(np.float32))

    report = make_report(
        "Export of a language model",
        {"from": str(args.model), "to": str(args.out), "number format": str(dtype)},
        pairs,
        None if args.adapter_only or args.verify == "tensors" else forward,
        needs=["torch", "transformers", *(["peft"] if apart else [])],
        what="logits",
    )
    return finish(report, args.out)

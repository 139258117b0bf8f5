"""Export a language model as a directory that `transformers.LlamaForCausalLM.from_pretrained` loads."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from seed_jax.convert.key_table import to_torch_tensors
from seed_jax.convert.llama.hf_import import ARCHITECTURE, CONFIG_KEYS, TOKEN_IDS
from seed_jax.convert.llama.key_table import key_table
from seed_jax.convert.llama.peft import write_adapter
from seed_jax.convert.llama.source import LlamaSource
from seed_jax.convert.llama.text_tokenizer import write_text_tokenizer
from seed_jax.convert.model_card.card import write_export_card
from seed_jax.convert.safetensors_writer import write_lazy_tensors
from seed_jax.convert.tensors import TensorDict, natural_sort_key
from seed_jax.errors import UserError
from seed_jax.files import new_directory, write_json
from seed_jax.models.llama.model import LlamaConfig
from seed_jax.precision import as_dtype

Form = Literal["merged", "peft", "adapter"]
BASE, ADAPTER = "base", "adapter"  # subfolders of the form "peft"
_LOAD = {
    "merged": "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
    'model = AutoModelForCausalLM.from_pretrained(".")\ntokenizer = AutoTokenizer.from_pretrained(".")',
    "peft": "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
    'base = AutoModelForCausalLM.from_pretrained("base")\nmodel = PeftModel.from_pretrained(base, "adapter")',
    "adapter": "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
    'base = AutoModelForCausalLM.from_pretrained("BASE_MODEL")\nmodel = PeftModel.from_pretrained(base, ".")',
}
INDEX = "model.safetensors.index.json"
MAX_SHARD_SIZE = 5 * 10**9
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def export_llama(
    model: str | Path,
    out: str | Path,
    *,
    form: Form = "merged",
    dtype: str | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
    base: str | None = None,
) -> None:
    """Export a language model for PyTorch's transformers and peft, one tensor at a time.

        export_llama("runs/sft", "sft_hf", dtype="bfloat16")
        transformers.LlamaForCausalLM.from_pretrained("sft_hf")

    Args:
        model: model directory or training workdir.
        out: directory to write, atomically; must be missing or empty.
        form: "merged" writes one model with the adapters merged in; "peft" the base model in `out/base` and a peft
            adapter in `out/adapter`; "adapter" the peft adapter alone.
        dtype: float32, bfloat16 or float16; default: the widest of what is stored.
        max_shard_size: bytes per weight file; a single larger tensor gets a file of its own.
        base: what the adapter's config names as its base model; default: `out/base` for the form "peft".

    Raises:
        UserError: there are no separate adapters to export, or `dtype` cannot represent a value.
    """
    source = LlamaSource.open(model)
    target = as_dtype(dtype) if dtype else source.dtype
    if form != "merged" and source.spec is None:
        raise UserError(f"{model} holds no adapters separate from the model: export it --merged.")
    with new_directory(out) as folder:
        if form == "peft":
            (folder / BASE).mkdir()
            (folder / ADAPTER).mkdir()
            write_llama(folder / BASE, source, source.params, target, max_shard_size)
            write_adapter(folder / ADAPTER, source, target, base or str(Path(out) / BASE))
        elif form == "adapter":
            write_adapter(folder, source, target, base)
        else:
            write_llama(folder, source, source.merged_params(), target, max_shard_size)
        write_export_card(
            folder,
            model,
            title="SEED-LLaMA language model",
            library="transformers" if form == "merged" else "peft",
            pipeline="text-generation",
            load=_LOAD[form],
            script=form == "merged",
        )
    if not source.files:
        logging.warning("%s has no text tokenizer: copy its files into %s.", model, out)


def write_llama(
    directory: Path, source: LlamaSource, params: Mapping[str, Any], dtype: np.dtype, max_shard_size: int
) -> None:
    """Write weights, configs and tokenizer files into an empty folder, without the vocabulary's padding rows.

    Args:
        params: of `source`, with or without its adapters merged in.
        max_shard_size: in bytes.
    """
    write_weights(directory, to_torch_tensors(key_table(source.config), params, "the model"), dtype, max_shard_size)
    write_json(directory / "config.json", hf_config(source.config, dtype))
    write_json(directory / "generation_config.json", dict(TOKEN_IDS))
    if source.files:
        write_text_tokenizer(directory, source.files)


def hf_config(config: LlamaConfig, dtype: np.dtype) -> dict[str, Any]:
    """Return the content of `config.json`, with the token ids that the tokenizer has (spec I.A.1)."""
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "llama",
        **{key: getattr(config, field) for field, key in CONFIG_KEYS.items()},
        "num_key_value_heads": config.num_kv_heads,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "use_cache": True,
        **TOKEN_IDS,
        "torch_dtype": str(dtype),
    }


def write_weights(directory: Path, tensors: TensorDict, dtype: np.dtype, max_shard_size: int) -> None:
    """Write `model.safetensors`, or shards and their index, in the order of the layers."""
    shards = plan_shards(tensors, np.dtype(dtype).itemsize, max_shard_size)
    files: dict[str, list[str]] = {}
    for number, names in enumerate(shards, 1):
        suffix = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        files[f"model{suffix}.safetensors"] = names
    for file, names in files.items():
        write_lazy_tensors(directory / file, {name: tensors[name] for name in names}, dtype)
    if len(files) > 1:
        total = sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in tensors.values()) * dtype.itemsize
        weight_map = {name: file for file, names in files.items() for name in names}
        write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def plan_shards(tensors: TensorDict, itemsize: int, max_shard_size: int) -> list[list[str]]:
    """Assign tensors to shards: in the order of the layers, as many per shard as fit.

    Args:
        itemsize: bytes per value.
        max_shard_size: in bytes.

    Returns:
        The tensor names of each shard.
    """
    shards: list[list[str]] = [[]]
    room = max_shard_size
    for name in sorted(tensors, key=natural_sort_key):
        size = int(np.prod(tensors[name].shape, dtype=np.int64)) * itemsize
        if size > room and shards[-1]:
            shards.append([])
            room = max_shard_size
        shards[-1].append(name)
        room -= size
    return shards


def parse_size(text: str) -> int:
    """Parse a size in bytes such as 5GB, 500MB or 2GiB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?B)?", text, re.IGNORECASE)
    size = int(float(match[1]) * _UNITS[(match[2] or "").upper()]) if match else 0
    if size < 1:
        raise UserError(f"{text!r} is not a size: write a number with a unit, such as 5GB or 500MiB.")
    return size

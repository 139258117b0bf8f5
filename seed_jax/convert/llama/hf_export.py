"""Write a language model as a directory that `transformers.LlamaForCausalLM.from_pretrained` loads."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from seed_jax.convert.key_table import open_ours
from seed_jax.convert.llama.hf_import import ARCHITECTURE, SIZES, TOKEN_IDS
from seed_jax.convert.llama.key_table import key_table
from seed_jax.convert.llama.source import LlamaSource
from seed_jax.convert.safetensors_writer import write_safetensors
from seed_jax.convert.tensors import Tensors, natural
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from seed_jax.files import write_json
from seed_jax.models.llama.model import LlamaConfig

INDEX = "model.safetensors.index.json"
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def write_llama(
    directory: Path, source: LlamaSource, params: Mapping[str, Any], dtype: np.dtype, max_shard_size: int
) -> None:
    """Write weights, configs and tokenizer files into an empty folder, a tensor at a time.

    Args:
        params: of `source`, merged or without its adapters; the vocabulary's padding is cut off.
        max_shard_size: bytes; a single larger tensor gets a file of its own.
    """
    write_weights(directory, open_ours(key_table(source.config), params, "the model"), dtype, max_shard_size)
    write_json(directory / "config.json", hf_config(source.config, dtype))
    write_json(directory / "generation_config.json", dict(TOKEN_IDS))
    if source.files:
        Vocabulary.load(next(iter(source.files.values())).parent).save(directory)
    for name, path in source.files.items():
        shutil.copyfile(path, directory / name)


def hf_config(config: LlamaConfig, dtype: np.dtype) -> dict[str, Any]:
    """Return the content of `config.json`, with the token ids that the tokenizer has (spec I.A.1)."""
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "llama",
        **{theirs: getattr(config, ours) for ours, theirs in SIZES.items()},
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


def write_weights(directory: Path, tensors: Tensors, dtype: np.dtype, max_shard_size: int) -> None:
    """Write `model.safetensors`, or shards and their index, layer after layer."""
    shards = plan_shards(tensors, np.dtype(dtype).itemsize, max_shard_size)
    files = {}
    for number, names in enumerate(shards, 1):
        whole = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        files[f"model{whole}.safetensors"] = names
    for file, names in files.items():
        shapes = {name: tensors[name].shape for name in names}
        write_safetensors(directory / file, shapes, dtype, ((name, tensors[name].read()) for name in names))
    if len(files) > 1:
        total = sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in tensors.values()) * dtype.itemsize
        weight_map = {name: file for file, names in files.items() for name in names}
        write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def plan_shards(tensors: Tensors, itemsize: int, limit: int) -> list[list[str]]:
    """Return the names of each shard: in the order of the layers, as many as fit."""
    shards, room = [[]], limit
    for name in sorted(tensors, key=natural):
        size = int(np.prod(tensors[name].shape, dtype=np.int64)) * itemsize
        if size > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    return shards


def parse_size(text: str) -> int:
    """Read a size such as 5GB, 500MB or 2GiB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?B)?", text, re.IGNORECASE)
    size = int(float(match[1]) * _UNITS[(match[2] or "").upper()]) if match else 0
    if size < 1:
        raise UserError(f"{text!r} is no size: write a number with a unit, such as 5GB or 500MiB.")
    return size

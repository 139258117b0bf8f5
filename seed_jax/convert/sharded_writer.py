"""Write the weights of a Hugging Face directory: one safetensors file, or shards and their index."""

from pathlib import Path

import numpy as np

from seed_jax.convert.safetensors_writer import write_lazy_tensors
from seed_jax.convert.tensors import TensorDict, natural_sort_key
from seed_jax.files import write_json

INDEX = "model.safetensors.index.json"
MAX_SHARD_SIZE = 5 * 10**9


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

"""Write a safetensors file tensor by tensor, so that a model is exported in the memory of one tensor."""

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from seed_jax.convert.key_table import rounded
from seed_jax.convert.tensors import SAFETENSORS_DTYPES, Shape

_NAMES = {np.dtype(dtype): name for name, dtype in SAFETENSORS_DTYPES.items()}


def write_safetensors(
    path: str | Path,
    shapes: Mapping[str, Shape],
    dtype: np.dtype | Mapping[str, np.dtype],
    tensors: Iterable[tuple[str, np.ndarray]],
) -> int:
    """Write tensors, rounded to a number format as the last step, and return how many bytes the file has.

    Args:
        shapes: name -> shape, known beforehand, because the file begins with its index.
        dtype: of all tensors, or name -> dtype.
        tensors: the same names in any order, each once.
    """
    path = Path(path)
    dtypes = {name: np.dtype(dtype[name] if isinstance(dtype, Mapping) else dtype) for name in shapes}
    header, offsets, end = {"__metadata__": {"format": "pt"}}, {}, 0
    for name in sorted(shapes):
        size = int(np.prod(shapes[name], dtype=np.int64)) * dtypes[name].itemsize
        offsets[name], end = end, end + size
        header[name] = {
            "dtype": _NAMES[dtypes[name]],
            "shape": list(shapes[name]),
            "data_offsets": [offsets[name], end],
        }
    index = json.dumps(header).encode()
    index += b" " * (-len(index) % 8)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(index)) + index)
        start = file.tell()
        for name, tensor in tensors:
            if tensor.shape != tuple(shapes[name]):
                raise ValueError(f"{name} is {tensor.shape}, announced as {tuple(shapes[name])}")
            file.seek(start + offsets.pop(name))
            file.write(np.ascontiguousarray(rounded(name, tensor, dtypes[name])).reshape(-1).view(np.uint8).data)
        if offsets:
            raise ValueError(f"announced but not given: {sorted(offsets)}")
        size = file.seek(0, 2)
    temporary.replace(path)
    return size

"""Write a safetensors file tensor by tensor, so that an export takes the memory of one tensor."""

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from seed_jax.convert.key_table import checked_cast
from seed_jax.convert.tensors import SAFETENSORS_DTYPES, LazyTensor, Shape, natural_sort_key
from seed_jax.files import atomic_path

_DTYPE_NAMES = {np.dtype(dtype): name for name, dtype in SAFETENSORS_DTYPES.items()}


def write_safetensors(
    path: str | Path,
    shapes: Mapping[str, Shape],
    dtype: np.dtype | Mapping[str, np.dtype],
    tensors: Iterable[tuple[str, np.ndarray]],
) -> int:
    """Write tensors, each cast as the last step.

    Args:
        path: the file, written atomically.
        shapes: name -> shape; the file begins with its header, so shapes come before tensors.
        dtype: of all tensors, or name -> dtype.
        tensors: (name, tensor) pairs of the same names in any order, each once.

    Returns:
        The size of the file in bytes.

    Raises:
        UserError: float16 cannot represent a value.
    """
    dtypes = {name: np.dtype(dtype[name] if isinstance(dtype, Mapping) else dtype) for name in shapes}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offsets: dict[str, int] = {}
    end = 0
    for name in sorted(shapes):
        offsets[name] = end
        end += int(np.prod(shapes[name], dtype=np.int64)) * dtypes[name].itemsize
        header[name] = {
            "dtype": _DTYPE_NAMES[dtypes[name]],
            "shape": list(shapes[name]),
            "data_offsets": [offsets[name], end],
        }
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        data_start = file.tell()
        for name, tensor in tensors:
            if tensor.shape != tuple(shapes[name]):
                raise ValueError(f"{name} has shape {tensor.shape}, announced as {tuple(shapes[name])}")
            file.seek(data_start + offsets.pop(name))
            file.write(np.ascontiguousarray(checked_cast(name, tensor, dtypes[name])).reshape(-1).view(np.uint8).data)
        if offsets:
            raise ValueError(f"announced but not written: {sorted(offsets)}")
        return file.seek(0, 2)


def write_lazy_tensors(
    path: str | Path, tensors: Mapping[str, LazyTensor], dtype: np.dtype | Mapping[str, np.dtype]
) -> int:
    """Write lazy tensors in natural order of their names; see `write_safetensors`."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    ordered = sorted(tensors, key=natural_sort_key)
    return write_safetensors(path, shapes, dtype, ((name, tensors[name].read()) for name in ordered))

"""Find and read the recorded numbers of the original PyTorch code."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

_HERE = Path(__file__).parents[1]
_PLACES = [
    _HERE / "goldens",
    *map(Path, filter(None, [os.environ.get("SEED_JAX_GOLDENS")])),
    _HERE.parents[1] / "shared/goldens",
]


def path(name: str) -> Path:
    """Return the golden file or folder `name`; skip the calling test, saying why, where it is absent."""
    for place in _PLACES:
        if (place / name).exists():
            return place / name
    pytest.skip(f"golden data {name} is not in this checkout; point SEED_JAX_GOLDENS at a folder that has it")
    raise AssertionError


def tensors(name: str) -> dict[str, np.ndarray]:
    """Read a safetensors file of goldens."""
    return load_file(path(name))


def load_json(name: str) -> dict:
    return json.loads(path(name).read_text(encoding="utf-8"))

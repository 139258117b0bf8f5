"""Golden data: recorded inputs and outputs of the original PyTorch code."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

_HERE = Path(__file__).parents[1]
_SEARCH_PATH = [
    _HERE / "goldens",
    *map(Path, filter(None, [os.environ.get("SEED_JAX_GOLDENS")])),
    _HERE.parents[1] / "shared/goldens",
]


def path(name: str) -> Path:
    """Return the path of the golden file or directory `name`; skip the calling test if it is absent."""
    for directory in _SEARCH_PATH:
        if (directory / name).exists():
            return directory / name
    pytest.skip(f"golden data {name} is not in this checkout: set SEED_JAX_GOLDENS to a directory that has it")
    raise AssertionError


def tensors(name: str) -> dict[str, np.ndarray]:
    """Read a safetensors file."""
    return load_file(path(name))


def load_json(name: str) -> dict:
    """Read a JSON file."""
    return json.loads(path(name).read_text(encoding="utf-8"))

"""Load stored weights over freshly initialized ones, into the same shardings."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from seed_jax.checkpoint import model_dir
from seed_jax.convert.key_table import Entry
from seed_jax.convert.tokenizer import pretrained
from seed_jax.errors import UserError
from seed_jax.train.config.tokenizer import InitFromConfig
from seed_jax.typing import ParamPath, Tree

EXTRAS_FILE = "extras.safetensors"  # tensors that `seed-jax import tokenizer` keeps under their official names


def overlay(variables: Tree, values: Mapping[str, Any], origin: str) -> Tree:
    """Return `variables` with some of them replaced, in the dtypes and shardings of the old ones.

    Args:
        variables: arrays.
        values: part of the same tree.
        origin: where the values come from, for error messages.

    Raises:
        UserError: a value has no place in `variables`, or another shape.
    """
    flat: dict[ParamPath, Any] = flatten_dict(variables)
    new: dict[ParamPath, Any] = flatten_dict(dict(values))
    problems = ["/".join(path) for path in new if path not in flat]
    problems += [
        f"{'/'.join(path)} is {leaf.shape}, expected {flat[path].shape}"
        for path, leaf in new.items()
        if path in flat and leaf.shape != flat[path].shape
    ]
    if problems:
        raise UserError(f"The weights of {origin} do not fit the model: {'; '.join(sorted(problems))}.")
    for path, leaf in new.items():
        flat[path] = jax.device_put(np.asarray(leaf, flat[path].dtype), flat[path].sharding)
    return unflatten_dict(flat)


def load_foreign(init_from: InitFromConfig, table: Sequence[Entry], variables: Tree) -> Tree:
    """Load the foreign files that `init_from` names over `variables`, one after the other.

    Args:
        init_from: the files.
        table: foreign names of `variables`.
        variables: arrays.
    """
    for kind, path in init_from.files().items():
        variables = overlay(variables, pretrained.load_pretrained(kind, path, table, variables), path)
    if not init_from.model and not init_from.files():
        logging.info("init_from names nothing: training starts from random weights.")
    return variables


def load_extras(directory: Path, table: Sequence[Entry], variables: Tree) -> Tree:
    """Load what an imported tokenizer's directory holds beside its parameters over `variables`."""
    path = directory / EXTRAS_FILE
    if not path.is_file():
        return variables
    return overlay(variables, pretrained.load_pretrained("extras", path, table, variables), str(path))


def open_collections(directory: str | Path, kind: str) -> Tree:
    """Open {"params": ..., further collections} of a workdir, or {"params": ...} of a model directory.

    The arrays are read when `overlay` uses them.
    """
    params = model_dir.open_lazily(directory, kind).params
    return params if "params" in params else {"params": params}


def select(tree: Mapping[str, Any], names: Sequence[str]) -> Tree:
    """Return the branches of `tree` with these names."""
    return {name: tree[name] for name in names if name in tree}

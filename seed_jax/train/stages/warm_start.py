"""Put stored weights over fresh ones, where they belong on the mesh."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from seed_jax.checkpoint import model_dir
from seed_jax.convert.key_table import Entry
from seed_jax.convert.tokenizer import pretrained
from seed_jax.errors import UserError

Tree = dict[str, Any]
EXTRAS_FILE = "extras.safetensors"  # what `seed-jax import tokenizer` sets aside, under official names


def overlay(variables: Tree, values: Mapping[str, Any], where: str) -> Tree:
    """Return `variables` with some of them replaced; the new ones lie as the old ones did.

    Args:
        values: a part of the same tree.
        where: what to call its origin in a message.
    """
    flat, new = flatten_dict(variables), flatten_dict(dict(values))
    problems = ["/".join(path) for path in new if path not in flat]
    problems += [
        f"{'/'.join(path)} is {leaf.shape}, expected {flat[path].shape}"
        for path, leaf in new.items()
        if path in flat and leaf.shape != flat[path].shape
    ]
    if problems:
        raise UserError(f"The weights of {where} do not fit the model: {'; '.join(sorted(problems))}.")
    for path, leaf in new.items():
        flat[path] = jax.device_put(np.asarray(leaf, flat[path].dtype), flat[path].sharding)
    return unflatten_dict(flat)


def read_foreign(config: ml_collections.ConfigDict, table: Sequence[Entry], variables: Tree) -> Tree:
    """Put the foreign files that `config.start` names over `variables`, one after the other.

    Args:
        table: foreign names of `variables`.
    """
    found = [kind for kind in pretrained.KINDS if config.start.get(kind)]
    for kind in found:
        values = pretrained.read(kind, config.start[kind], table, variables)
        variables = overlay(variables, values, config.start[kind])
    if not found and not config.start.init:
        logging.info("Nothing is named in config.start: training begins with random weights.")
    return variables


def read_extras(directory: Path, table: Sequence[Entry], variables: Tree) -> Tree:
    """Put what an imported tokenizer's directory holds beside its parameters over `variables`."""
    path = directory / EXTRAS_FILE
    if not path.is_file():
        return variables
    return overlay(variables, pretrained.read("extras", path, table, variables), str(path))


def load_collections(directory: str | Path, kind: str) -> Tree:
    """Open {"params": ..., further collections} of a training workdir or of a model directory, which has no further.

    The arrays are read when `overlay` takes them.
    """
    found = model_dir.open_lazily(directory, kind)
    return found.params if "params" in found.params else {"params": found.params}


def only(tree: Mapping[str, Any], names: Sequence[str]) -> Tree:
    """Return the branches of `tree` with these names."""
    return {name: tree[name] for name in names if name in tree}

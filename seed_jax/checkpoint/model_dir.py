"""Model directories: what every command reads and writes.

    config.json   kind, format, sizes and whatever else the kind needs, provenance
    params/       parameters (Orbax, one entry per tensor)
    ...           files of the kind, e.g. a language model's tokenizer.model and added_tokens.json

A training workdir is read as a model directory too: its `model/` holds the same files without `params/`, which come
from the newest checkpoint.
"""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict

from seed_jax.checkpoint import lazy
from seed_jax.errors import UserError
from seed_jax.files import new_directory, write_json
from seed_jax.precision import as_dtype

FORMAT = 1
CONFIG = "config.json"
PARAMS = "params"


@dataclasses.dataclass(frozen=True)
class ModelDir:
    """A model as read from disk; `params` is a nested dict of arrays."""

    kind: str
    config: dict[str, Any]
    params: dict[str, Any]
    directory: Path


def save(
    directory: str | Path,
    kind: str,
    config: dict[str, Any],
    params: dict[str, Any] | None,
    *,
    files: dict[str, Path] | None = None,
    provenance: dict[str, Any] | None = None,
) -> Path:
    """Write a model directory; it appears whole or not at all.

    Args:
        params: nested dict of arrays, lazy ones (`checkpoint.lazy`) too, or None for the `model/` folder of a workdir.
        files: name inside the directory -> file to copy there.
    """
    with new_directory(directory) as temporary:
        for name, source in (files or {}).items():
            shutil.copyfile(source, temporary / name)
        head = {"kind": kind, "format": FORMAT, **config, "provenance": provenance or {}}
        write_json(temporary / CONFIG, head)
        if params is not None:
            lazy.write_arrays(temporary / PARAMS, params)
    return Path(directory)


def read_config(directory: str | Path, kind: str | None = None) -> tuple[Path, dict[str, Any]]:
    """Return the folder that holds `config.json` (the directory itself or its `model/`) and its content."""
    directory = Path(directory)
    for folder in (directory, directory / "model"):
        config = _kind_config(folder / CONFIG)
        if config is not None:
            break
    else:
        raise UserError(
            f"{directory} is neither a model directory nor a training workdir: it has no {CONFIG} with a 'kind'; "
            "make one with `seed-jax import`."
        )
    if config["format"] != FORMAT:
        raise UserError(f"{folder / CONFIG} has format {config['format']}, expected {FORMAT}: import the model again.")
    if kind is not None and config["kind"] != kind:
        raise UserError(f"{directory} holds a model of kind {config['kind']!r}, expected {kind!r}.")
    return folder, config


def _kind_config(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({error}): restore it or import the model again.") from error
    return config if isinstance(config, dict) and "kind" in config else None


def params_path(directory: Path) -> Path:
    """Return where the parameters of a model directory or workdir lie."""
    if (directory / PARAMS).is_dir():
        return directory / PARAMS
    steps = [path for path in (directory / "checkpoints").glob("*") if path.name.isdigit() and (path / PARAMS).is_dir()]
    if not steps:
        raise UserError(f"{directory} holds no parameters: neither {PARAMS}/ nor a finished step in checkpoints/.")
    return max(steps, key=lambda path: int(path.name)) / PARAMS


def load(
    directory: str | Path, kind: str | None = None, *, dtype: str | None = None, shardings: Any = None
) -> ModelDir:
    """Read a model directory or the newest checkpoint of a training workdir.

    Args:
        kind: refuse any other kind, e.g. "seed_tokenizer", "llama" or "unclip".
        dtype: convert floating parameters while reading (float32, bfloat16, float16).
        shardings: tree of shardings like the parameters; by default everything goes to the first local device.
    """
    folder, config = read_config(directory, kind)
    path = params_path(Path(directory))
    try:
        params = restore_params(path, dtype=dtype, shardings=shardings)
    except (OSError, ValueError) as error:
        raise UserError(f"The parameters in {path} cannot be read ({error}): copy or import them again.") from error
    return ModelDir(config["kind"], config, params, folder)


def open_lazily(directory: str | Path, kind: str | None = None) -> ModelDir:
    """Read a model directory or the newest checkpoint of a workdir; its arrays stay on disk until they are indexed."""
    folder, config = read_config(directory, kind)
    path = params_path(Path(directory))
    try:
        return ModelDir(config["kind"], config, lazy.open_arrays(path), folder)
    except (OSError, ValueError) as error:
        raise UserError(f"The parameters in {path} cannot be read ({error}): copy or import them again.") from error


def restore_params(path: Path, *, dtype: str | None = None, shardings: Any = None) -> dict[str, Any]:
    """Read a parameter tree tensor by tensor into the given shardings."""
    local = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    # The handler, not a checkpointer: an item of a training checkpoint lacks the metadata file that one would miss.
    with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
        tree = handler.metadata(epath.Path(path).absolute()).tree
        shardings = jax.tree.map(lambda _: local, tree) if shardings is None else shardings
        abstract = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, _target(leaf.dtype, dtype), sharding=sharding),
            tree,
            shardings,
        )
        return handler.restore(epath.Path(path).absolute(), args=ocp.args.StandardRestore(abstract))


def _target(stored: np.dtype, wanted: str | None) -> np.dtype:
    return as_dtype(wanted) if wanted and jax.numpy.issubdtype(stored, jax.numpy.floating) else stored


def check_tree(params: dict[str, Any], expected: dict[str, Any], where: str) -> None:
    """Raise one error that lists every missing, unexpected and misshapen parameter of `params`."""
    have, want = flatten_dict(params, sep="/"), flatten_dict(expected, sep="/")
    problems = [f"missing {name}" for name in sorted(want.keys() - have.keys())]
    problems += [f"unexpected {name}" for name in sorted(have.keys() - want.keys())]
    problems += [
        f"{name} is {have[name].shape}, expected {want[name].shape}"
        for name in sorted(have.keys() & want.keys())
        if have[name].shape != want[name].shape
    ]
    if problems:
        raise UserError(f"The parameters in {where} do not fit the model: {'; '.join(problems)}.")

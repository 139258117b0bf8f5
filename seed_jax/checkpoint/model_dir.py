"""Model directories: the format that every command reads and writes.

    config.json      kind, format version, model config ("sizes") and what else the kind needs, provenance
    params/          parameters (Orbax, one entry per tensor)
    checksums.json   SHA-256 of every other file, see `checksums`
    ...              files of the kind, e.g. a language model's tokenizer.model and added_tokens.json

A training workdir is read as a model directory too: its `model/` holds the same files except `params/`; the parameters
are those of the newest checkpoint, or of the best one where `best.json` names it.
"""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict

from seed_jax.checkpoint import checksums, lazy
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.errors import UserError
from seed_jax.files import new_directory, read_json, write_json
from seed_jax.precision import as_dtype
from seed_jax.typing import Tree

FORMAT = 1
CONFIG = "config.json"
PARAMS = "params"
BEST = "best.json"  # of a workdir: which checkpoint is the best, where `checkpoint.keep_best` asks for one


@dataclasses.dataclass(frozen=True)
class ModelDir:
    """A model read from disk.

    Args:
        kind: one of `ModelKind`.
        config: the content of `config.json`.
        params: tree of arrays or lazy arrays.
        directory: the folder that holds `config.json`.
    """

    kind: str
    config: dict[str, Any]
    params: Tree
    directory: Path

    @property
    def variables(self) -> Tree:
        """The variables by collection ("params", "lora", ...); those of an imported model are all in "params"."""
        return self.params if "params" in self.params else {"params": self.params}

    @property
    def config_path(self) -> str:
        """The path of `config.json`, for messages."""
        return str(self.directory / CONFIG)


def save(
    directory: str | Path,
    kind: str,
    config: dict[str, Any],
    params: Tree | None,
    *,
    files: Mapping[str, Path | Callable[[Path], Any]] | None = None,
    provenance: dict[str, Any] | None = None,
) -> Path:
    """Write a model directory atomically.

    Args:
        directory: where to write; must be missing or empty.
        kind: one of `ModelKind`.
        config: further keys of `config.json`, such as "sizes".
        params: tree of arrays or lazy arrays, or None for the `model/` folder of a workdir.
        files: path inside the directory -> file to copy there, or function that writes a file at the path it is given.
        provenance: where the parameters come from, for `config.json`.
    """
    with new_directory(directory) as temporary:
        for name, source in (files or {}).items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(source):
                source(path)
            else:
                shutil.copyfile(source, path)
        write_json(temporary / CONFIG, {"kind": kind, "format": FORMAT, **config, "provenance": provenance or {}})
        if params is not None:
            lazy.write_arrays(temporary / PARAMS, params)
        checksums.write_file(temporary)
    return Path(directory)


def read_config(directory: str | Path, kind: str | Sequence[str] | None = None) -> tuple[Path, dict[str, Any]]:
    """Find and read `config.json`, in the directory itself or in its `model/`.

    Args:
        kind: the expected kind, or several; None accepts every kind.

    Returns:
        The folder that holds `config.json`, and its content.

    Raises:
        UserError: there is none, or it is of another format or kind.
    """
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
    if config.get("format") != FORMAT:
        raise UserError(
            f"{folder / CONFIG} has format {config.get('format')}, expected {FORMAT}: import the model again."
        )
    kinds = [kind] if isinstance(kind, str) else kind
    if kinds is not None and config["kind"] not in kinds:
        expected = " or ".join(map(_describe, kinds))
        raise UserError(f"{directory} holds {_describe(config['kind'])}, expected {expected}.")
    return folder, config


def _describe(kind: str) -> str:
    known = kind in list(ModelKind)
    return f"{ModelKind(kind).description} (kind {str(kind)!r})" if known else f"a model of unknown kind {kind!r}"


def _kind_config(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    config = read_json(path, "restore it or import the model again")
    return config if isinstance(config.get("kind"), str) else None


def params_path(directory: Path) -> Path:
    """Return the folder with the parameters of a model directory, or of the best or newest checkpoint of a workdir."""
    if (directory / PARAMS).is_dir():
        return directory / PARAMS
    steps = [path for path in (directory / "checkpoints").glob("*") if path.name.isdigit() and (path / PARAMS).is_dir()]
    if not steps:
        raise UserError(f"{directory} holds no parameters: neither {PARAMS}/ nor a finished step in checkpoints/.")
    best = (
        read_json(directory / BEST, "delete it to load the newest checkpoint") if (directory / BEST).is_file() else {}
    )
    chosen = [path for path in steps if path.name == str(best.get("step"))]
    return (chosen[0] if chosen else max(steps, key=lambda path: int(path.name))) / PARAMS


def load(
    directory: str | Path, kind: str | Sequence[str] | None = None, *, dtype: str | None = None, shardings: Any = None
) -> ModelDir:
    """Read a model directory or the newest checkpoint of a training workdir.

    Args:
        kind: the expected kind (`ModelKind`), or several; None accepts every kind.
        dtype: cast floating-point parameters while reading (float32, bfloat16, float16).
        shardings: tree of shardings like the parameters; default: everything on the first local device.

    Raises:
        UserError: the directory is not of that kind, or its parameters cannot be read.
    """
    folder, config = read_config(directory, kind)
    path = params_path(Path(directory))
    with lazy.damage_reported(path):
        params = restore_params(path, dtype=dtype, shardings=shardings)
    return ModelDir(config["kind"], config, params, folder)


def open_lazily(directory: str | Path, kind: str | Sequence[str] | None = None) -> ModelDir:
    """Open a model directory or the newest checkpoint of a workdir; its lazy arrays are read when they are indexed."""
    folder, config = read_config(directory, kind)
    return ModelDir(config["kind"], config, lazy.open_arrays(params_path(Path(directory))), folder)


def restore_params(path: Path, *, dtype: str | None = None, shardings: Any = None) -> Tree:
    """Read a parameter tree tensor by tensor into the given shardings."""
    local = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    # A handler instead of a Checkpointer, which requires a metadata file that items of training checkpoints lack.
    with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
        tree = handler.metadata(epath.Path(path).absolute()).tree
        shardings = jax.tree.map(lambda _: local, tree) if shardings is None else shardings
        abstract = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(
                leaf.shape, _target_dtype(leaf.dtype, dtype), sharding=sharding
            ),
            tree,
            shardings,
        )
        return handler.restore(epath.Path(path).absolute(), args=ocp.args.StandardRestore(abstract))


def _target_dtype(stored: np.dtype, wanted: str | None) -> np.dtype:
    return as_dtype(wanted) if wanted and jax.numpy.issubdtype(stored, jax.numpy.floating) else stored


def check_tree(params: Tree, expected: Tree, source: str) -> None:
    """Check the names and shapes of parameters.

    Args:
        expected: tree of arrays or abstract arrays.
        source: what to call the origin of `params` in the message.

    Raises:
        UserError: lists every missing, unexpected and wrongly shaped parameter.
    """
    stored: dict[str, Any] = flatten_dict(params, sep="/")
    wanted: dict[str, Any] = flatten_dict(expected, sep="/")
    problems = [f"missing {name}" for name in sorted(wanted.keys() - stored.keys())]
    problems += [f"unexpected {name}" for name in sorted(stored.keys() - wanted.keys())]
    problems += [
        f"{name} has shape {stored[name].shape}, expected {wanted[name].shape}"
        for name in sorted(stored.keys() & wanted.keys())
        if stored[name].shape != wanted[name].shape
    ]
    if problems:
        raise UserError(f"The parameters in {source} do not fit the model: {'; '.join(problems)}.")


def decoder_params(stored: Tree) -> Tree:
    """Return the parameters to draw with; those of a training workdir are the moving averages."""
    if "params" not in stored:
        return stored
    return {**stored["params"], **{part: tree for part, tree in stored["ema"].items() if part != "updates"}}

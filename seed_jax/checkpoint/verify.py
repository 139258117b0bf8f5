"""Verify what a directory stores: every file of a model directory, every chunk of the checkpoints of a run."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import tensorstore

from seed_jax.checkpoint import checksums, lazy, model_dir, store
from seed_jax.errors import UserError
from seed_jax.files import read_json

_ARRAY_METADATAS = "array_metadatas"  # Orbax's folder of descriptions of arrays, one file for each host
_DRIVERS = {"zarr.json": "zarr3", ".zarray": "zarr"}


@dataclasses.dataclass
class Verification:
    """What was verified, and what is wrong with it.

    Attributes:
        verified: one line for each model directory and checkpoint.
        problems: one sentence for each file or array that is damaged.
    """

    verified: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)


def verify(directory: str | Path) -> Verification:
    """Read everything that a model directory, a bundle, a workdir, or a directory of them stores.

        for problem in verify("pretrained/seed-llama-8b").problems:
            print(problem)

    Raises:
        UserError: there is nothing to verify in `directory`.
    """
    directory = Path(directory)
    found = Verification()
    for path in sorted(directory.rglob(checksums.FILE)):
        found.verified.append(f"{path.parent}: SHA-256 of every file")
        found.problems += checksums.compare_file(path.parent)
    for path in sorted(directory.rglob(model_dir.PARAMS)):
        if (
            path.is_dir()
            and not (path.parent / checksums.FILE).is_file()
            and path.parent.parent.name != store.CHECKPOINTS
        ):
            found.verified.append(f"{path}: every array can be read (written without checksums.json)")
            found.problems += _unreadable_arrays(path)
    for path in sorted(directory.rglob(f"{store.CHECKPOINTS}/*")):
        if path.name.isdigit() and path.is_dir():
            found.verified.append(f"{path}: every array and the position of the data")
            found.problems += _checkpoint_problems(path)
    if not found.verified:
        raise UserError(f"{directory} holds no model directory and no checkpoints: name a directory that does.")
    return found


def _checkpoint_problems(step: Path) -> Iterator[str]:
    for item in store.ARRAY_ITEMS:
        yield from _unreadable_arrays(step / item)
        for path in (step / item / lazy.TREE_METADATA, *sorted((step / item / _ARRAY_METADATAS).glob("*"))):
            try:
                read_json(path)
            except UserError as error:
                yield str(error)
    for item in store.JSON_ITEMS:
        path = step / item / store.JSON_FILE
        try:
            checksums.unseal(read_json(path))
        except UserError as error:
            yield str(error)
        except ValueError as error:
            yield f"{path} is damaged: {error}."


def _unreadable_arrays(folder: Path) -> Iterator[str]:
    """Yield a sentence for each array of an Orbax folder that cannot be read."""
    kvstore = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder.absolute()}/"}}
    try:
        with lazy.damage_reported(folder):
            keys = [key.decode() for key in tensorstore.KvStore.open(kvstore).result().list().result()]
    except UserError as error:
        yield str(error)
        return
    arrays = [key.rpartition("/") for key in sorted(keys)]
    arrays = [(name, _DRIVERS[last]) for name, _, last in arrays if last in _DRIVERS]
    if not arrays:
        yield f"{folder} holds no arrays: a file is missing."
    for name, driver in arrays:
        try:
            lazy.open_array(folder, driver, name, tensorstore.Context())[...]
        except UserError as error:
            yield f"{name}: {error}"

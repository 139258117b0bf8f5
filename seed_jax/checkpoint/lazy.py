"""Lazy arrays: parameters that are read, or computed, when they are indexed, and written one at a time.

Orbax's own save holds a whole tree in memory and copies NumPy arrays on top of that: three times a model's size.
"""

import contextlib
import dataclasses
import gc
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint import type_handlers

from seed_jax.checkpoint import checksums
from seed_jax.errors import UserError
from seed_jax.files import AnyPath
from seed_jax.typing import Tree

checksums.add_to_chunks()
# Larger arrays are chunked along their first axis, so that one layer can be read without the others.
CHUNK_BYTES = 64 * 2**20
TREE_METADATA = "_METADATA"  # where Orbax describes a tree
# How much of a chunk that was read for one layer is kept for the next layers.
_CACHE = {"cache_pool": {"total_bytes_limit": 2 * CHUNK_BYTES}}


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array that is read when it is indexed: `array[2]` and `array[...]` return NumPy arrays.

    Args:
        shape, dtype: of the whole array.
        read: takes an index of the first axis, or Ellipsis for the whole array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Any], np.ndarray]

    @classmethod
    def from_array(cls, array: Any) -> "LazyArray":
        """Wrap a NumPy or JAX array; a lazy array is returned as it is."""
        if isinstance(array, LazyArray):
            return array
        return cls(tuple(array.shape), np.dtype(array.dtype), lambda index: np.asarray(array)[index])

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.read(index)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(...), dtype)


def materialize(tree: Mapping[str, Any]) -> Tree:
    """Read every lazy array of a tree into NumPy arrays."""
    return unflatten_dict({path: np.asarray(leaf) for path, leaf in flatten_dict(dict(tree)).items()})


def load_on_device(tree: Mapping[str, Any]) -> Tree:
    """Read every lazy array of a tree onto the first local device, one at a time."""
    device = jax.local_devices()[0]
    return unflatten_dict({p: jax.device_put(np.asarray(leaf), device) for p, leaf in flatten_dict(dict(tree)).items()})


def open_arrays(path: Path) -> Tree:
    """Open a parameter tree that Orbax wrote: a tree of lazy arrays.

    Reading one layer of a stacked parameter takes the memory of its chunk: see `save_args`.

    Raises:
        UserError: the directory, or later the chunk that is read, is damaged.
    """
    with damage_reported(path):
        with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
            tree = handler.metadata(epath.Path(path).absolute()).tree
        # Earlier versions wrote Zarr 2, which has no checksums.
        driver = "zarr3" if json.loads((path / TREE_METADATA).read_bytes()).get("use_zarr3") else "zarr"
        context = tensorstore.Context(_CACHE)
        return unflatten_dict({keys: open_array(path, driver, ".".join(keys), context) for keys in flatten_dict(tree)})


def open_array(path: Path, driver: str, name: str, context: tensorstore.Context) -> LazyArray:
    """Open one array of an Orbax folder; `driver` is the version of its format, "zarr3" or "zarr"."""
    base = {"driver": "file", "path": f"{path.absolute()}/"}
    kvstore = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
    spec = {"driver": driver, "kvstore": kvstore, "fill_missing_data_reads": False}
    with damage_reported(path):
        store = tensorstore.open(spec, context=context, read=True).result()

    def read(index: Any) -> np.ndarray:
        with damage_reported(path):
            return np.asarray(store[index].read().result())

    return LazyArray(tuple(store.shape), store.dtype.numpy_dtype, read)


@contextlib.contextmanager
def damage_reported(path: Path) -> Iterator[None]:
    """Turn whatever Orbax and TensorStore raise on damaged files in `path` into a sentence for the user."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = reason_of_damage(error)
        raise UserError(
            f"The parameters in {path} cannot be read, a file is damaged or missing ({reason}): copy or import them "
            "again."
        ) from error


def reason_of_damage(error: Exception) -> str:
    """Describe in one line why files could not be read, and release what the failed read holds.

    On damaged files Orbax and TensorStore raise whatever their parsers do, so every exception may mean damage.

    Raises:
        MemoryError, JaxRuntimeError: `error`, where it is not the fault of the files.
    """
    if isinstance(error, MemoryError | jax.errors.JaxRuntimeError):
        raise error
    chain = _chain(error)
    # Python prints a traceback for every other read of the same tree that failed, when it frees them.
    previous, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    asyncio_logger = logging.getLogger("asyncio")
    asyncio_logger.disabled = True
    try:
        for link in chain:
            traceback.clear_frames(link.__traceback__)
        gc.collect()
    finally:
        sys.unraisablehook = previous
        asyncio_logger.disabled = False
    lines = str(chain[-1]).strip().splitlines()
    text = re.sub(r"\s*\[\w[\w ]*='.*", "", lines[0]) if lines else ""  # TensorStore appends where it was raised
    text = text[:300].rstrip(".")
    return text if " " in text else f"{type(chain[-1]).__name__} {text}".rstrip()


def write_arrays(path: Path, params: Mapping[str, Any]) -> None:
    """Write a tree of arrays in Orbax's format with at most one lazy or NumPy array in memory at a time.

    JAX arrays are written as Orbax does it: each process writes its shards.
    """
    flat = flatten_dict(dict(params))
    tree = unflatten_dict(
        {path: leaf if isinstance(leaf, jax.Array) else LazyArray.from_array(leaf) for path, leaf in flat.items()}
    )
    handler = _SequentialHandler()
    registry = type_handlers.create_type_handler_registry(
        (jax.Array, type_handlers.ArrayHandler()), (LazyArray, handler)
    )
    orbax_logger = logging.getLogger("absl")
    level = orbax_logger.level
    orbax_logger.setLevel(logging.CRITICAL)  # Orbax logs the traceback of an error that is raised below as well
    try:
        with ocp.Checkpointer(array_handler(type_handler_registry=registry)) as checkpointer:
            checkpointer.save(epath.Path(path).absolute(), args=ocp.args.PyTreeSave(tree, save_args=save_args(tree)))
    except ValueError:
        if handler.error is None:
            raise  # otherwise it says that the arrays after the failed one are missing
    finally:
        orbax_logger.setLevel(level)
    if handler.error is not None:
        raise os_error(handler.error, path) or handler.error


def array_handler(**options: Any) -> ocp.PyTreeCheckpointHandler:
    """Return the handler that writes trees of arrays with checksums."""
    return ocp.PyTreeCheckpointHandler(use_zarr3=True, **options)


def os_error(error: Exception, path: AnyPath) -> OSError | None:
    """Return the operating system's error behind another, such as a full disk, which TensorStore reports as text."""
    for link in _chain(error):
        if isinstance(link, OSError) and link.errno:
            return OSError(link.errno, os.strerror(link.errno), link.filename or str(path))
        if match := re.search(r"os_error_code='(\d+)'", str(link)):
            return OSError(int(match[1]), os.strerror(int(match[1])), str(path))
    return None


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and those that caused it, the first cause last."""
    chain = [error]
    while (following := chain[-1].__cause__ or chain[-1].__context__) and following not in chain:
        chain.append(following)
    return chain


def save_args(tree: Mapping[str, Any]) -> Tree:
    """Return Orbax's SaveArgs of each leaf: large stacks of layers (three axes or more) are chunked by layer.

    Arrays that are sharded over devices are chunked by layer within each shard.
    """

    def leaf_args(leaf: Any) -> ocp.SaveArgs:
        size = np.prod(leaf.shape, dtype=np.int64) * np.dtype(leaf.dtype).itemsize
        return ocp.SaveArgs(shard_axes=(0,)) if len(leaf.shape) > 2 and size > CHUNK_BYTES else ocp.SaveArgs()

    return unflatten_dict({path: leaf_args(leaf) for path, leaf in flatten_dict(dict(tree)).items()})


class _SequentialHandler(type_handlers.NumpyHandler):
    """Write lazy arrays one after the other, so that Orbax reads them back as NumPy arrays.

    An array that cannot be read ends the writing and its exception is kept as `error`. Raised inside Orbax, it would
    abort the save while other arrays are still being written, into a directory that is removed meanwhile.
    """

    def __init__(self):
        super().__init__(deepcopy_host_arrays=False)
        self.error: Exception | None = None

    async def serialize(self, values, infos, args=None):
        """Read, write and release each array; no futures are left to await."""
        try:
            for value, info, arg in zip(values, infos, args or [None] * len(values), strict=True):
                for future in await super().serialize([np.asarray(value)], [info], [arg] if arg else None):
                    future.result()
        except Exception as error:
            self.error = error
        return []

"""Parameters that are not in memory: arrays that are read, or made, only when asked for, and written one by one.

Orbax' own way holds a whole tree at once, and copies arrays of NumPy on top of that: three times a model's size.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint import type_handlers

# A stored array above this is cut along its layers, so that one layer can be read without the others.
CHUNK_BYTES = 64 * 2**20
# What is kept of a chunk that was read for one layer, for the next layers.
_CACHE = {"cache_pool": {"total_bytes_limit": 2 * CHUNK_BYTES}}


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array that is read when it is indexed: `array[2]` or `array[...]` give NumPy arrays.

    `read` takes an index of the first axis, or Ellipsis for everything.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Any], np.ndarray]

    @classmethod
    def of(cls, array: Any) -> "LazyArray":
        """Wrap an array of NumPy or JAX."""
        return cls(tuple(array.shape), np.dtype(array.dtype), lambda index: np.asarray(array)[index])

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.read(index)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(...), dtype)


def materialize(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Read every lazy array of a nested dict."""
    return unflatten_dict({path: np.asarray(leaf) for path, leaf in flatten_dict(dict(tree)).items()})


def on_device(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Read every lazy array of a nested dict onto the first local device, one after the other."""
    device = jax.local_devices()[0]
    return unflatten_dict({p: jax.device_put(np.asarray(leaf), device) for p, leaf in flatten_dict(dict(tree)).items()})


def open_arrays(path: Path) -> dict[str, Any]:
    """Open a parameter tree that Orbax wrote: a nested dict of lazy arrays.

    A layer of a stacked parameter costs the memory of its chunk: see `chunks`.
    """
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        tree = handler.metadata(epath.Path(path).absolute()).tree
    context = tensorstore.Context(_CACHE)
    flat = {keys: _open_array(path, ".".join(keys), context) for keys in flatten_dict(tree)}
    return unflatten_dict(flat)


def _open_array(path: Path, name: str, context: tensorstore.Context) -> LazyArray:
    base = {"driver": "file", "path": f"{path.absolute()}/"}
    kvstore = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
    store = tensorstore.open({"driver": "zarr", "kvstore": kvstore}, context=context, read=True).result()
    return LazyArray(
        tuple(store.shape), store.dtype.numpy_dtype, lambda index: np.asarray(store[index].read().result())
    )


def write_arrays(path: Path, params: Mapping[str, Any]) -> None:
    """Write a nested dict of arrays, lazy ones too, in Orbax' format; one of those is in memory at a time.

    Arrays of JAX are written as Orbax does it, each process its shards.
    """
    flat = flatten_dict(dict(params))
    tree = unflatten_dict(
        {p: leaf if isinstance(leaf, (jax.Array, LazyArray)) else LazyArray.of(leaf) for p, leaf in flat.items()}
    )
    one_by_one = _OneByOne()
    registry = type_handlers.create_type_handler_registry(
        (jax.Array, type_handlers.ArrayHandler()), (LazyArray, one_by_one)
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=registry)) as checkpointer:
        checkpointer.save(epath.Path(path).absolute(), args=ocp.args.PyTreeSave(tree, save_args=chunks(tree)))
    if one_by_one.error is not None:
        raise one_by_one.error


def chunks(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return how Orbax should cut each array of a tree: large stacks of layers (three axes or more) by layer.

    Arrays that are spread over devices are cut by layer within each device's part.
    """

    def cut(leaf: Any) -> ocp.SaveArgs:
        size = np.prod(leaf.shape, dtype=np.int64) * np.dtype(leaf.dtype).itemsize
        return ocp.SaveArgs(shard_axes=(0,)) if len(leaf.shape) > 2 and size > CHUNK_BYTES else ocp.SaveArgs()

    return unflatten_dict({path: cut(leaf) for path, leaf in flatten_dict(dict(tree)).items()})


class _OneByOne(type_handlers.NumpyHandler):
    """Write lazy arrays one after the other, as what Orbax reads back as arrays of NumPy.

    An array that cannot be made ends the writing and is kept as `error`. Raised inside Orbax it would be out before
    the arrays that are written at the same time, and those would come into a folder that was removed meanwhile.
    """

    def __init__(self):
        super().__init__(deepcopy_host_arrays=False)
        self.error: Exception | None = None

    async def serialize(self, values, infos, args=None):
        """Read, write and let go of each array; nothing is left to wait for."""
        try:
            for value, info, arg in zip(values, infos, args, strict=True):
                for written in await super().serialize([np.asarray(value)], [info], [arg]):
                    written.result()
        except Exception as error:
            self.error = error
        return []

"""Key tables: which PyTorch tensor corresponds to which of our parameters, readable in both directions."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from seed_jax.checkpoint.lazy import LazyArray, materialize
from seed_jax.convert.tensors import LazyTensor, Shape, TensorDict
from seed_jax.errors import UserError
from seed_jax.typing import Tree

_FLOAT16_MAX = 65504.0


def checked_cast(name: str, tensor: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Cast a tensor to another dtype.

    Args:
        name: of the tensor, for the message.

    Raises:
        UserError: float16 cannot represent one of its values.
    """
    if dtype == np.float16 and tensor.dtype != np.float16 and tensor.size:
        values = tensor.astype(np.float32, copy=False)
        largest = max(float(values.max()), -float(values.min()))
        if largest > _FLOAT16_MAX:
            raise UserError(
                f"{name} holds {largest:.6g}, more than float16's largest number, {_FLOAT16_MAX:.0f}: "
                "choose --dtype bfloat16 or float32."
            )
    return tensor.astype(dtype, copy=False)


def promoted_dtype(dtypes: Iterable[np.dtype]) -> np.dtype:
    """Return the narrowest dtype that represents the values of all these dtypes."""
    return np.dtype(functools.reduce(jnp.promote_types, dtypes))


@dataclasses.dataclass(frozen=True)
class Layout:
    """The memory layout of a PyTorch tensor relative to ours.

    Args:
        axes: ours = theirs.transpose(axes); None where the order is the same.
        lead: how many leading axes of size 1 the PyTorch tensor has.
    """

    axes: tuple[int, ...] | None = None
    lead: int = 0

    def from_torch(self, tensor: np.ndarray) -> np.ndarray:
        """Convert a PyTorch tensor to our layout."""
        tensor = tensor.reshape(tensor.shape[self.lead :])
        return tensor if self.axes is None else tensor.transpose(self.axes)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Convert one of our arrays to PyTorch's layout."""
        tensor = array if self.axes is None else array.transpose(np.argsort(self.axes))
        return tensor.reshape((1,) * self.lead + tensor.shape)

    def torch_shape(self, shape: Shape) -> Shape:
        """Return the PyTorch shape of an array of ours with this shape."""
        order = range(len(shape)) if self.axes is None else np.argsort(self.axes)
        return (1,) * self.lead + tuple(shape[axis] for axis in order)


@dataclasses.dataclass(frozen=True)
class PaddedVocabulary(Layout):
    """The layout of a matrix with one row per token: `size` rows in PyTorch, zero-padded to `padded` rows here."""

    size: int = 0
    padded: int = 0

    def from_torch(self, tensor: np.ndarray) -> np.ndarray:
        return super().from_torch(np.pad(tensor, ((0, self.padded - self.size), (0, 0))))

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        return super().to_torch(array)[: self.size]

    def torch_shape(self, shape: Shape) -> Shape:
        return (self.size, *super().torch_shape(shape)[1:])


IDENTITY = Layout()
LINEAR = Layout(axes=(1, 0))  # PyTorch's Linear is (out, in), Flax's Dense (in, out)
CONV = Layout(axes=(2, 3, 1, 0))  # OIHW -> HWIO


@dataclasses.dataclass(frozen=True)
class Entry:
    """One of our parameters and the PyTorch tensors it is made of.

    Args:
        path: of the parameter in our tree, such as "vit/blocks/layers/norm1/scale".
        name: of the tensor; `{}` stands for the layer's number where our parameter is stacked over layers.
        layout: of the tensor relative to ours (of one layer).
        layers: the layers' numbers in the order of the stack; None for a parameter that is not stacked.
    """

    path: str
    name: str
    layout: Layout = IDENTITY
    layers: Sequence[int] | None = None

    @property
    def names(self) -> list[str]:
        """The names of all tensors of this entry."""
        return [self.name] if self.layers is None else [self.name.format(layer) for layer in self.layers]


def dense_entries(path: str, name: str, layers: Sequence[int] | None = None) -> list[Entry]:
    """Return the entries of the kernel and bias of a PyTorch Linear."""
    return [
        Entry(f"{path}/kernel", f"{name}.weight", LINEAR, layers),
        Entry(f"{path}/bias", f"{name}.bias", IDENTITY, layers),
    ]


def norm_entries(path: str, name: str, layers: Sequence[int] | None = None) -> list[Entry]:
    """Return the entries of the scale and bias of a PyTorch LayerNorm."""
    return [
        Entry(f"{path}/scale", f"{name}.weight", IDENTITY, layers),
        Entry(f"{path}/bias", f"{name}.bias", IDENTITY, layers),
    ]


def _flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    return flatten_dict(dict(tree), sep="/")


def expected_shapes(table: Sequence[Entry], params: Mapping[str, Any]) -> dict[str, Shape]:
    """Return name -> shape of every PyTorch tensor of a table.

    Args:
        params: our parameters, arrays or abstract arrays; the table must cover them exactly.
    """
    flat = _flatten(params)
    if sorted(flat) != sorted(entry.path for entry in table):
        uncovered = sorted(flat.keys() ^ {entry.path for entry in table})
        raise ValueError(f"the key table and the model disagree about {uncovered}")
    shapes: dict[str, Shape] = {}
    for entry in table:
        shape = tuple(flat[entry.path].shape)
        torch_shape = entry.layout.torch_shape(shape if entry.layers is None else shape[1:])
        shapes.update(dict.fromkeys(entry.names, torch_shape))
    return shapes


def assemble(table: Sequence[Entry], tensors: TensorDict, params: Mapping[str, Any]) -> Tree:
    """Read PyTorch tensors into our tree of NumPy arrays.

    A stack of layers is filled in place, so that no more than one tensor is in memory twice at a time.

    Args:
        params: our parameters, arrays or abstract arrays, whose shapes and dtypes the result has.
    """
    return materialize(assemble_lazily(table, tensors, params))


def assemble_lazily(table: Sequence[Entry], tensors: TensorDict, params: Mapping[str, Any]) -> Tree:
    """Return our tree of lazy arrays, each of which reads its PyTorch tensors when it is indexed; see `assemble`."""
    flat = _flatten(params)
    return unflatten_dict({entry.path: _lazy_param(entry, tensors, flat[entry.path]) for entry in table}, sep="/")


def _lazy_param(entry: Entry, tensors: TensorDict, like: Any) -> LazyArray:
    def read_tensor(name: str) -> np.ndarray:
        return checked_cast(name, entry.layout.from_torch(tensors[name].read()), np.dtype(like.dtype))

    def read(index: Any) -> np.ndarray:
        if index is not ...:
            return read_tensor(entry.name)[index] if entry.layers is None else read_tensor(entry.names[index])
        array = np.empty(like.shape, like.dtype)
        if entry.layers is None:
            array[...] = read_tensor(entry.name)
        else:
            for layer, name in enumerate(entry.names):
                array[layer] = read_tensor(name)
        return array

    return LazyArray(tuple(like.shape), np.dtype(like.dtype), read)


def select_params(table: Sequence[Entry], params: Mapping[str, Any]) -> Tree:
    """Return the part of a tree that these entries cover."""
    flat = _flatten(params)
    return unflatten_dict({entry.path: flat[entry.path] for entry in table}, sep="/")


def to_torch_tensors(table: Sequence[Entry], params: Mapping[str, Any], source: str) -> TensorDict:
    """Return our parameters under PyTorch names and in PyTorch layouts, each read when it is asked for.

    Args:
        params: tree of arrays or lazy arrays; the table must cover it exactly.
        source: what to call their origin in messages.
    """
    flat = _flatten(params)
    shapes = expected_shapes(table, params)
    tensors: dict[str, LazyTensor] = {}
    for entry in table:
        array = flat[entry.path]
        for index, name in enumerate(entry.names):
            read = functools.partial(_read_as_torch, entry, array, ... if entry.layers is None else index)
            tensors[name] = LazyTensor(shapes[name], np.dtype(array.dtype), read)
    return TensorDict(tensors, source)


def _read_as_torch(entry: Entry, array: Any, index: Any) -> np.ndarray:
    # A JAX array is converted as a whole: indexing it would compile a program for every layer.
    array = array if isinstance(array, LazyArray) else np.asarray(array)
    return np.asarray(entry.layout.to_torch(array[index]), order="C")


def disassemble(table: Sequence[Entry], params: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield our parameters as (PyTorch name, tensor), one tensor at a time."""
    for name, tensor in to_torch_tensors(table, params, "the parameters").items():
        yield name, tensor.read()

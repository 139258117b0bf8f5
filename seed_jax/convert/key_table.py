"""A key table: which foreign tensor is which of our parameters, readable in both directions."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from seed_jax.checkpoint.lazy import LazyArray, materialize
from seed_jax.convert.tensors import Shape, Tensor, Tensors
from seed_jax.errors import UserError

_FLOAT16_MAX = 65504.0


def rounded(name: str, tensor: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return `tensor` in another number format; UserError where float16 cannot hold a value of it."""
    if dtype == np.float16 and tensor.dtype != np.float16 and tensor.size:
        values = tensor.astype(np.float32, copy=False)
        largest = max(float(values.max()), -float(values.min()))
        if largest > _FLOAT16_MAX:
            raise UserError(
                f"{name} holds {largest:.6g}, more than float16's largest number, {_FLOAT16_MAX:.0f}: "
                "choose --dtype bfloat16 or float32."
            )
    return tensor.astype(dtype, copy=False)


def widest(dtypes: Iterable[np.dtype]) -> np.dtype:
    """Return the narrowest number format that holds numbers of all these formats."""
    return np.dtype(functools.reduce(jnp.promote_types, dtypes))


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a foreign tensor is laid out: `lead` axes of size 1 in front, and an order of axes that differs from ours."""

    axes: tuple[int, ...] | None = None  # ours = theirs.transpose(axes)
    lead: int = 0

    def to_ours(self, theirs: np.ndarray) -> np.ndarray:
        ours = theirs.reshape(theirs.shape[self.lead :])
        return ours if self.axes is None else ours.transpose(self.axes)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        theirs = ours if self.axes is None else ours.transpose(np.argsort(self.axes))
        return theirs.reshape((1,) * self.lead + theirs.shape)

    def their_shape(self, ours: Shape) -> Shape:
        return (1,) * self.lead + (ours if self.axes is None else tuple(ours[i] for i in np.argsort(self.axes)))


SAME = Layout()
MATRIX = Layout(axes=(1, 0))  # PyTorch's Linear is (out, in)
CONV = Layout(axes=(2, 3, 1, 0))  # OIHW -> HWIO


@dataclasses.dataclass(frozen=True)
class Entry:
    """One of our parameters and its foreign name, or names: one a layer for a parameter that is stacked over layers.

    `name` has `{}` where the layer's number stands; `layers` are the numbers in the order of the stack.
    """

    path: str  # "vit/blocks/layers/norm1/scale"
    name: str
    layout: Layout = SAME
    layers: Sequence[int] | None = None

    @property
    def names(self) -> list[str]:
        return [self.name] if self.layers is None else [self.name.format(layer) for layer in self.layers]


def dense_entries(path: str, name: str, layers: Sequence[int] | None = None) -> list[Entry]:
    """Return kernel and bias of a PyTorch Linear."""
    return [
        Entry(f"{path}/kernel", f"{name}.weight", MATRIX, layers),
        Entry(f"{path}/bias", f"{name}.bias", SAME, layers),
    ]


def norm_entries(path: str, name: str, layers: Sequence[int] | None = None) -> list[Entry]:
    """Return scale and bias of a PyTorch LayerNorm."""
    return [
        Entry(f"{path}/scale", f"{name}.weight", SAME, layers),
        Entry(f"{path}/bias", f"{name}.bias", SAME, layers),
    ]


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    return flatten_dict(tree, sep="/")


def expected_shapes(table: Sequence[Entry], params: Mapping[str, Any]) -> dict[str, Shape]:
    """Return name -> shape of every foreign tensor.

    Args:
        params: our parameters, arrays or abstract (`jax.eval_shape`); the table must cover them exactly.
    """
    flat = _flat(params)
    if sorted(flat) != sorted(entry.path for entry in table):
        odd = sorted(flat.keys() ^ {entry.path for entry in table})
        raise ValueError(f"the key table and the model disagree about {odd}")
    shapes = {}
    for entry in table:
        ours = tuple(flat[entry.path].shape)
        theirs = entry.layout.their_shape(ours if entry.layers is None else ours[1:])
        shapes.update(dict.fromkeys(entry.names, theirs))
    return shapes


def assemble(table: Sequence[Entry], tensors: Tensors, params: Mapping[str, Any]) -> dict[str, Any]:
    """Read foreign tensors into our tree of NumPy arrays; `params` gives shapes and number formats.

    A stack of layers is filled in place, so that no more than one tensor exists twice at a time.
    """
    return materialize(assemble_lazily(table, tensors, params))


def assemble_lazily(table: Sequence[Entry], tensors: Tensors, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return our tree of lazy arrays, each of which reads its foreign tensors when it is asked for."""
    flat = _flat(params)
    return unflatten_dict({entry.path: _ours(entry, tensors, flat[entry.path]) for entry in table}, sep="/")


def _ours(entry: Entry, tensors: Tensors, like: Any) -> LazyArray:
    def part(name: str) -> np.ndarray:
        return rounded(name, entry.layout.to_ours(tensors[name].read()), np.dtype(like.dtype))

    def read(index: Any) -> np.ndarray:
        if index is not ...:
            return part(entry.name)[index] if entry.layers is None else part(entry.names[index])
        ours = np.empty(like.shape, like.dtype)
        if entry.layers is None:
            ours[...] = part(entry.name)
        else:
            for layer, name in enumerate(entry.names):
                ours[layer] = part(name)
        return ours

    return LazyArray(tuple(like.shape), np.dtype(like.dtype), read)


def open_ours(table: Sequence[Entry], params: Mapping[str, Any], where: str) -> Tensors:
    """Return our parameters (arrays, lazy ones too) as foreign tensors, each read when it is asked for.

    Args:
        where: what to call them in a message.
    """
    flat = _flat(params)
    shapes = expected_shapes(table, params)
    found = {}
    for entry in table:
        ours = flat[entry.path]
        for index, name in enumerate(entry.names):
            read = functools.partial(_theirs, entry, ours, ... if entry.layers is None else index)
            found[name] = Tensor(shapes[name], np.dtype(ours.dtype), read)
    return Tensors(found, where)


def _theirs(entry: Entry, ours: Any, index: Any) -> np.ndarray:
    ours = ours if isinstance(ours, LazyArray) else np.asarray(ours)  # at once: JAX would compile the indexing
    return np.asarray(entry.layout.to_theirs(ours[index]), order="C")


def disassemble(table: Sequence[Entry], params: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield our parameters under their foreign names, one tensor at a time."""
    for name, tensor in open_ours(table, params, "the parameters").items():
        yield name, tensor.read()

"""Read pickles of plain data and NumPy arrays without running anything that they name.

A pickle is a program. This reader knows only the instructions that build numbers, texts, lists and dicts; the few
NumPy names that an array's pickle contains stand for classes of ours, which check what they are given.
"""

import io
import pickle
import pickletools
from typing import Any

import numpy as np

LARGEST = 1 << 22  # bytes of a pickle: a sample has a few thousand
_MOST_VALUES = 1 << 17  # after shared lists are written out
_SIMPLE = "?bhilqBHILQefd"

_OPCODES = """PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4
FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 UNICODE BINUNICODE SHORT_BINUNICODE
BINUNICODE8 EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS GET
BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD""".split()  # noqa: SIM905
_BYTEARRAY8 = 0x96
_KNOWN = {opcode.code.encode("latin-1")[0] for opcode in pickletools.opcodes if opcode.name in _OPCODES}


class PickleError(Exception):
    """A pickle holds something other than plain data, or is damaged."""


class _Dtype:
    """Stands for numpy.dtype: numbers only."""

    def __init__(self, *args):
        name = args[0] if args else None
        if not isinstance(name, str) or name.lstrip("<>|=") not in _NUMBERS:
            raise PickleError(f"an array of {name!r}"[:80])
        self.name, self.order = name.lstrip("<>|="), "<"

    def __setstate__(self, state):
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            self.order = ">"


class _Array:
    """Stands for an array until its state comes: (version, shape, dtype, is_fortran, bytes)."""

    value: Any = None

    def __setstate__(self, state):
        if not isinstance(state, tuple) or len(state) != 5:
            raise PickleError("an array with an unknown state")
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


class _Ndarray:
    """Stands for the class numpy.ndarray, which is an argument of `_reconstruct`."""


def _reconstruct(*args):
    return _Array()


def _scalar(*args):
    if len(args) != 2 or not isinstance(args[0], _Dtype):
        raise PickleError("a number with an unknown state")
    found = _Array()
    found.value = _array(args[1], args[0], (), "C").item()
    return found


def _array(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if isinstance(data, str):
        data = data.encode("latin-1")
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes) or not isinstance(shape, tuple):
        raise PickleError("an array with an unknown state")
    if not all(type(size) is int and 0 <= size <= LARGEST for size in shape) or len(shape) > 8:
        raise PickleError(f"an array of shape {shape!r}"[:80])
    return np.frombuffer(data, np.dtype(dtype.order + dtype.name)).reshape(shape, order=order)


def _frombuffer(*args):
    """Stand for numpy's `_frombuffer(buffer, dtype, shape, order)`, which newer pickles use."""
    if len(args) != 4:
        raise PickleError("an array with an unknown state")
    found = _Array()
    found.value = _array(*args[:3], "F" if args[3] == "F" else "C")
    return found


def _encode(*args):
    """Stand for `_codecs.encode(text, "latin1")`, as which old protocols write bytes."""
    if len(args) != 2 or not isinstance(args[0], str) or args[1] != "latin1":
        raise PickleError("bytes with an unknown state")
    return args[0].encode("latin-1")


def _no_bytes(*args):
    """Stand for `bytes()`, as which old protocols write empty bytes."""
    if args:
        raise PickleError("bytes with an unknown state")
    return b""


_NUMBERS = {np.dtype(code).str[1:] for code in _SIMPLE}
_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
_NAMES = {
    **{(module, "_reconstruct"): _reconstruct for module in _MODULES},
    **{(module, "scalar"): _scalar for module in _MODULES},
    **{(module, "_frombuffer"): _frombuffer for module in _MODULES},
    ("numpy", "ndarray"): _Ndarray,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
}


class _Unpickler(pickle._Unpickler):
    """The unpickler written in Python, whose memo is a dict (the other one can be made to allocate any size)."""

    dispatch = {code: action for code, action in pickle._Unpickler.dispatch.items() if code in _KNOWN}  # noqa: RUF012

    def load_bytearray8(self):
        # The original allocates as many bytes as the pickle claims to have.
        self.append(self.read(min(int.from_bytes(self.read(8), "little"), LARGEST)))

    dispatch[_BYTEARRAY8] = load_bytearray8

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise PickleError(f"it names {module}.{name}"[:200])
        return _NAMES[module, name]


def load(data: bytes) -> Any:
    """Return the plain data in a pickle: arrays of numbers as NumPy arrays, tuples as lists; else PickleError."""
    if len(data) > LARGEST:
        raise PickleError(f"it has {len(data):,} bytes")
    try:
        return _Plain().of(_Unpickler(io.BytesIO(data)).load())
    except KeyError as error:
        raise PickleError(f"it has the instruction {error}, which plain data does not need") from error
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        IndexError,
        AttributeError,
        OverflowError,
    ) as error:
        raise PickleError(f"it is damaged ({type(error).__name__}: {error})"[:200]) from error
    except (RecursionError, AssertionError, UnicodeError, MemoryError) as error:
        raise PickleError(f"it is damaged ({type(error).__name__})") from error


class _Plain:
    """Turn what was unpickled into JSON-like data, up to a number of values."""

    def __init__(self):
        self._left = _MOST_VALUES

    def of(self, value: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise PickleError(f"it has more than {_MOST_VALUES:,} values")
        if isinstance(value, list | tuple):
            return [self.of(each) for each in value]
        if isinstance(value, dict):
            return {self.of(key): self.of(each) for key, each in value.items()}
        if isinstance(value, _Array) and value.value is not None:
            return value.value
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise PickleError("it holds a number beyond 64 bits")
        if isinstance(value, str | int | float | bool | None):
            return value
        raise PickleError(f"it holds a {type(value).__name__.strip('_')}")

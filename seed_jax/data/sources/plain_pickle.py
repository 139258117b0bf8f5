"""Read pickles of plain data and NumPy arrays without executing anything that they name.

A pickle is a program. This reader implements only the opcodes that build numbers, strings, lists and dicts; the few
NumPy names in an array's pickle resolve to classes of this module, which validate their arguments.
"""

import io
import pickle
import pickletools
from typing import Any, Literal

import numpy as np

MAX_BYTES = 1 << 22  # of a pickle: a sample has a few thousand
_MAX_VALUES = 1 << 17  # after expanding shared lists
_NUMERIC_CODES = "?bhilqBHILQefd"

_OPCODES = """PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4
FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 UNICODE BINUNICODE SHORT_BINUNICODE
BINUNICODE8 EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS GET
BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD""".split()  # noqa: SIM905
_BYTEARRAY8 = 0x96
_KNOWN = {opcode.code.encode("latin-1")[0] for opcode in pickletools.opcodes if opcode.name in _OPCODES}


class PickleError(Exception):
    """The pickle contains something other than plain data, or is damaged."""


class _Dtype:
    """Replaces numpy.dtype; numeric types only."""

    def __init__(self, *args: Any):
        name = args[0] if args else None
        if not isinstance(name, str) or name.lstrip("<>|=") not in _NUMBERS:
            raise PickleError(f"an array of {name!r}"[:80])
        self.name = name.lstrip("<>|=")
        self.order = "<"

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            self.order = ">"


class _Array:
    """Replaces an array; its state is (version, shape, dtype, is_fortran, bytes)."""

    value: Any = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise PickleError("an array with an unknown state")
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


class _Ndarray:
    """Replaces the class numpy.ndarray, which is an argument of `_reconstruct`."""


def _reconstruct(*args: Any) -> _Array:
    return _Array()


def _scalar(*args: Any) -> _Array:
    if len(args) != 2 or not isinstance(args[0], _Dtype):
        raise PickleError("a number with an unknown state")
    scalar = _Array()
    scalar.value = _array(args[1], args[0], (), "C").item()
    return scalar


def _array(data: Any, dtype: Any, shape: Any, order: Literal["C", "F"]) -> np.ndarray:
    if isinstance(data, str):
        data = data.encode("latin-1")
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes) or not isinstance(shape, tuple):
        raise PickleError("an array with an unknown state")
    if not all(type(size) is int and 0 <= size <= MAX_BYTES for size in shape) or len(shape) > 8:
        raise PickleError(f"an array of shape {shape!r}"[:80])
    return np.frombuffer(data, np.dtype(dtype.order + dtype.name)).reshape(shape, order=order)


def _frombuffer(*args: Any) -> _Array:
    """Replace NumPy's `_frombuffer(buffer, dtype, shape, order)`, which newer pickles use."""
    if len(args) != 4:
        raise PickleError("an array with an unknown state")
    array = _Array()
    array.value = _array(*args[:3], "F" if args[3] == "F" else "C")
    return array


def _encode(*args: Any) -> bytes:
    """Replace `_codecs.encode(text, "latin1")`, with which old protocols write bytes."""
    if len(args) != 2 or not isinstance(args[0], str) or args[1] != "latin1":
        raise PickleError("bytes with an unknown state")
    return args[0].encode("latin-1")


def _no_bytes(*args: Any) -> bytes:
    """Replace `bytes()`, with which old protocols write empty bytes."""
    if args:
        raise PickleError("bytes with an unknown state")
    return b""


_NUMBERS = {np.dtype(code).str[1:] for code in _NUMERIC_CODES}
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


_PythonUnpickler: Any = pickle._Unpickler


class _Unpickler(_PythonUnpickler):
    """The Python unpickler restricted to the known opcodes; the C unpickler can be made to allocate any amount."""

    dispatch = {code: action for code, action in _PythonUnpickler.dispatch.items() if code in _KNOWN}  # noqa: RUF012

    def load_bytearray8(self) -> None:
        # The base class allocates as many bytes as the pickle claims to contain.
        self.append(self.read(min(int.from_bytes(self.read(8), "little"), MAX_BYTES)))

    dispatch[_BYTEARRAY8] = load_bytearray8

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise PickleError(f"it names {module}.{name}"[:200])
        return _NAMES[module, name]


def load(data: bytes) -> Any:
    """Return the plain data in a pickle: numeric arrays as NumPy arrays, tuples as lists.

    Raises:
        PickleError: the pickle is damaged, too large, or names anything else.
    """
    if len(data) > MAX_BYTES:
        raise PickleError(f"it has {len(data):,} bytes")
    try:
        return _PlainConverter().convert(_Unpickler(io.BytesIO(data)).load())
    except KeyError as error:
        raise PickleError(f"it has the instruction {error}, which plain data does not use") from error
    except PickleError:
        raise
    except RecursionError as error:  # its text cannot be formatted at this depth
        raise PickleError("it is nested too deeply") from error
    except Exception as error:  # the unpickler raises almost anything on damaged pickles
        raise PickleError(f"it is damaged ({type(error).__name__}: {error})"[:200]) from error


class _PlainConverter:
    """Converts unpickled values to JSON-like data and limits their number."""

    def __init__(self) -> None:
        self._remaining = _MAX_VALUES

    def convert(self, value: Any) -> Any:
        self._remaining -= 1
        if self._remaining < 0:
            raise PickleError(f"it has more than {_MAX_VALUES:,} values")
        if isinstance(value, list | tuple):
            return [self.convert(element) for element in value]
        if isinstance(value, dict):
            return {self.convert(key): self.convert(element) for key, element in value.items()}
        if isinstance(value, _Array) and value.value is not None:
            return value.value
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise PickleError("it holds a number beyond 64 bits")
        if isinstance(value, str | int | float | bool | None):
            return value
        raise PickleError(f"it holds a {type(value).__name__.strip('_')}")

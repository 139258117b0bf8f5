"""Read named tensors from foreign files one at a time: safetensors, and PyTorch's `.pt`, `.pth`, `.bin`.

Nothing is read before it is asked for, so that a model can be converted in little more memory than it needs itself.
"""

import dataclasses
import functools
import json
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from seed_jax.errors import UserError

_WRAPPERS = ("model", "module", "state_dict")
_REMAP_AFTER = 256 * 2**20  # bytes


class TorchFile:
    """A PyTorch file that is mapped into memory, and mapped anew now and then: pages once read would add up."""

    def __init__(self, path: Path):
        try:
            import torch
        except ImportError:
            raise UserError(
                f"Reading {path} needs PyTorch: pip install 'seed-jax[torch]', or convert the file to safetensors."
            ) from None
        self._torch, self._path = torch, path
        self._opened: dict[str, Any] = {}
        self._mapped, self._bytes_read = False, 0

    def tensors(self) -> dict[str, Any]:
        """Return PyTorch's tensors by name; {"model": ...}, {"module": ...} and {"state_dict": ...} are unwrapped."""
        if self._mapped and self._bytes_read > _REMAP_AFTER:
            self._opened = {}
        if not self._opened:
            self._opened, self._bytes_read = self._open(), 0
        return self._opened

    def read(self, name: str) -> np.ndarray:
        """Return one tensor, which keeps its mapping alive."""
        value = self.tensors()[name].detach().contiguous()
        self._bytes_read += value.numel() * value.element_size()
        if value.dtype == self._torch.bfloat16:
            return value.view(self._torch.int16).numpy().view(ml_dtypes.bfloat16)
        return value.numpy()

    def _open(self) -> dict[str, Any]:
        state = self._load()
        while isinstance(state, dict) and (key := next((k for k in _WRAPPERS if isinstance(state.get(k), dict)), None)):
            state = state[key]
        named = state.items() if isinstance(state, dict) else ()
        found = {name: value for name, value in named if isinstance(value, self._torch.Tensor)}
        if not found:
            raise UserError(f"{self._path} holds no dictionary of tensors: give a PyTorch state dict.")
        return found

    def _load(self) -> Any:
        options = {"map_location": "cpu", "weights_only": True}
        try:
            try:
                state, self._mapped = self._torch.load(self._path, mmap=True, **options), True
            except RuntimeError:  # the format of before PyTorch 1.6 cannot be mapped
                state, self._mapped = self._torch.load(self._path, **options), False
        except Exception as error:  # torch raises errors of many kinds on files that are no checkpoints
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"{self._path} cannot be read as a PyTorch file of plain tensors ({reason}): it is truncated, of "
                "another kind, or holds code, which is never run; download it again."
            ) from error
        return state


def numpy_dtype(value: Any) -> np.dtype:
    """Return NumPy's name of a tensor's number format."""
    name = str(value.dtype).removeprefix("torch.")
    return np.dtype(getattr(ml_dtypes, name, name))


def write_torch(path: Path, source: Path) -> Path:
    """Write a safetensors file as a PyTorch state dict; its tensors are mapped, not held."""
    try:
        import torch
        from safetensors import safe_open
    except ImportError:
        raise UserError(f"Writing {path.name} needs PyTorch: pip install 'seed-jax[torch]'.") from None
    temporary = path.with_name(f".{path.name}.tmp")
    with safe_open(source, "pt") as file:
        torch.save({name: file.get_tensor(name) for name in file.keys()}, temporary)  # noqa: SIM118
    return temporary.replace(path)


_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
# safetensors' own reader knows bfloat16 in its newest releases only; the format is an index and plain bytes.
SAFETENSORS_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that lies in a file."""

    shape: Shape
    dtype: np.dtype
    read: Callable[[], np.ndarray]


class Tensors(Mapping[str, Tensor]):
    """Tensors by name, and the files they come from (for messages)."""

    def __init__(self, tensors: Mapping[str, Tensor], where: str):
        self._tensors = dict(tensors)
        self.where = where

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self):
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def with_prefix(self, prefix: str) -> "Tensors":
        """Return the same tensors under longer names."""
        return Tensors({prefix + name: tensor for name, tensor in self.items()}, self.where)

    def merged(self, other: "Tensors") -> "Tensors":
        """Return the tensors of both; a name that both have is an error."""
        twice = sorted(self.keys() & other.keys())
        if twice:
            raise UserError(f"{self.where} and {other.where} both hold {listed(twice)}: give each tensor once.")
        return Tensors({**self._tensors, **other._tensors}, f"{self.where} and {other.where}")


def open_tensors(paths: str | Path | Iterable[str | Path]) -> Tensors:
    """Open one file, or the several files of a sharded model, without reading the tensors.

    Files that PyTorch wrote need the extra `torch`; they are read as pure data (`weights_only`), never executed, and a
    dictionary wrapped as {"model": ...}, {"module": ...} or {"state_dict": ...} is unwrapped.
    """
    paths = [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    if not paths:
        raise UserError("No weight files to open: give at least one.")
    opened = None
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} does not exist or is not a file: give a .safetensors, .pt, .pth or .bin file.")
        if path.suffix == ".safetensors":
            tensors = Tensors(_open_safetensors(path), str(path))
        elif path.suffix in _TORCH_SUFFIXES:
            tensors = Tensors(_open_torch(path), str(path))
        else:
            raise UserError(f"{path} has an unknown suffix: expected .safetensors, .pt, .pth or .bin.")
        opened = tensors if opened is None else opened.merged(tensors)
    return opened


def check(
    expected: Mapping[str, Shape], found: Tensors, *, ignore: Iterable[str] = (), allow_unexpected: bool = False
) -> list[str]:
    """Compare names and shapes, and raise one error that lists every difference.

    Args:
        ignore: names that may be there without being expected.
        allow_unexpected: return the unexpected names instead of treating them as an error.
    """
    missing = expected.keys() - found.keys()
    unexpected = found.keys() - expected.keys() - set(ignore)
    misshapen = [
        f"{name} is {found[name].shape}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and found[name].shape != tuple(shape)
    ]
    problems = [f"missing: {listed(missing)}"] if missing else []
    if unexpected and not allow_unexpected:
        problems.append(f"unexpected: {listed(unexpected)}")
    problems += [f"misshapen: {'; '.join(misshapen)}"] if misshapen else []
    if problems:
        raise UserError(f"The tensors in {found.where} do not fit the model: {'; '.join(problems)}.")
    return sorted(unexpected, key=natural)


def listed(names: Iterable[str]) -> str:
    """Write down every name, those that differ in their first number only (a layer's) as one with ranges."""
    groups: dict[tuple[str, str], list[int]] = {}
    plain = []
    for name in sorted(names, key=natural):
        parts = re.fullmatch(r"(.*?)(?<![^.])(\d+)(?![^.])(.*)", name)
        if parts:
            groups.setdefault((parts[1], parts[3]), []).append(int(parts[2]))
        else:
            plain.append(name)
    return ", ".join(plain + [f"{head}{_ranges(numbers)}{tail}" for (head, tail), numbers in groups.items()])


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return text if len(numbers) == 1 else f"{{{text}}}"


def natural(name: str) -> list:
    """Return a key that sorts layer 2 before layer 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size - 8:
                raise ValueError("its index is longer than the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return {name: _safetensor(path, size, 8 + length, entry) for name, entry in header.items()}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({type(error).__name__}: {error}): download it again."
        ) from error


def _safetensor(path: Path, size: int, start: int, entry: dict) -> Tensor:
    dtype, shape = np.dtype(SAFETENSORS_DTYPES[entry["dtype"]]), tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    count = int(np.prod(shape, dtype=np.int64))
    if end - begin != count * dtype.itemsize or start + end > size:
        raise ValueError("a tensor reaches beyond the end of the file")

    def read() -> np.ndarray:
        return np.fromfile(path, dtype, count, offset=start + begin).reshape(shape)

    return Tensor(shape, dtype, read)


def _open_torch(path: Path) -> dict[str, Tensor]:
    file = TorchFile(path)
    return {
        name: Tensor(tuple(value.shape), numpy_dtype(value), functools.partial(file.read, name))
        for name, value in file.tensors().items()
    }

"""Read named tensors from other libraries' files one at a time: safetensors, and PyTorch's `.pt`, `.pth`, `.bin`.

Tensors are read when they are asked for, so that a model is converted in little more memory than its largest tensor.
"""

import dataclasses
import functools
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from seed_jax.errors import UserError
from seed_jax.files import MAX_TEXT_BYTES, atomic_path, parse_json, read_json
from seed_jax.lfs import check_not_pointer

# The safetensors library reads bfloat16 into NumPy in its newest releases only; the format is a header and plain bytes.
SAFETENSORS_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_WRAPPERS = ("model", "module", "state_dict")
# A mapped file is mapped again after this many bytes: pages that were read would add up in the process's memory.
_REMAP_BYTES = 256 * 2**20
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read when `read` is called."""

    shape: Shape
    dtype: np.dtype
    read: Callable[[], np.ndarray]


class TensorDict(Mapping[str, LazyTensor]):
    """Tensors by name.

    Args:
        tensors: name -> tensor.
        source: the files they come from, for messages.
    """

    def __init__(self, tensors: Mapping[str, LazyTensor], source: str):
        self._tensors = dict(tensors)
        self.source = source

    def __getitem__(self, name: str) -> LazyTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def with_prefix(self, prefix: str) -> "TensorDict":
        """Return the same tensors with `prefix` in front of every name."""
        return TensorDict({prefix + name: tensor for name, tensor in self.items()}, self.source)

    def merged(self, other: "TensorDict") -> "TensorDict":
        """Return the tensors of both.

        Raises:
            UserError: both hold a tensor of the same name.
        """
        twice = sorted(self.keys() & other.keys())
        if twice:
            raise UserError(f"{self.source} and {other.source} both hold {format_names(twice)}: give each tensor once.")
        return TensorDict({**self._tensors, **other._tensors}, f"{self.source} and {other.source}")


def open_tensors(paths: str | Path | Iterable[str | Path]) -> TensorDict:
    """Open one file, or the files of a sharded model, without reading the tensors.

    PyTorch files need the extra `torch`. They are read as data (`weights_only`), code in them is never executed, and a
    state dict wrapped as {"model": ...}, {"module": ...} or {"state_dict": ...} is unwrapped.

    Args:
        paths: .safetensors, .pt, .pth, .bin or .ckpt files.

    Raises:
        UserError: a file is missing, damaged, of another format, or two hold the same tensor.
    """
    paths = [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    if not paths:
        raise UserError("No weight files to open: give at least one.")
    return functools.reduce(TensorDict.merged, map(_open_file, paths))


def weight_files(directory: Path, stem: str = "model") -> list[Path]:
    """Find `STEM.safetensors` or `pytorch_STEM.bin`, or the shards that an index file lists.

    Safetensors are preferred where a directory has both.

    Raises:
        UserError: the directory has neither.
    """
    for name in (f"{stem}.safetensors", f"pytorch_{stem}.bin"):
        if (directory / name).is_file():
            return [directory / name]
        index = directory / f"{name}.index.json"
        if index.is_file():
            return indexed_files(index)
    raise UserError(f"{directory} has no weights: expected {stem}.safetensors, pytorch_{stem}.bin or their shards.")


def indexed_files(index: Path) -> list[Path]:
    """Return the shards that an index file lists.

    Raises:
        UserError: the index has no valid `weight_map`, or names a file outside its directory.
    """
    weight_map = read_json(index, "download it again").get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise UserError(f"{index} has no 'weight_map' of tensor names to file names: download it again.")
    return [index.parent / name for name in sorted(set(names))]


def _open_file(path: Path) -> TensorDict:
    if not path.is_file():
        raise UserError(f"{path} does not exist or is not a file: give a .safetensors, .pt, .pth or .bin file.")
    check_not_pointer(path)
    if path.suffix == ".safetensors":
        return TensorDict(_open_safetensors(path), str(path))
    if path.suffix in _TORCH_SUFFIXES:
        file = TorchFile(path)
        return TensorDict({name: file.lazy_tensor(name) for name in file.tensors()}, str(path))
    raise UserError(f"{path} has an unknown suffix: expected .safetensors, .pt, .pth or .bin.")


def check_tensors(
    expected: Mapping[str, Shape], tensors: TensorDict, *, ignore: Iterable[str] = (), allow_unexpected: bool = False
) -> list[str]:
    """Compare the names and shapes of tensors with those that a model needs.

    Args:
        expected: name -> shape.
        tensors: what the files hold.
        ignore: names that may be present without being expected.
        allow_unexpected: return unexpected names instead of raising.

    Returns:
        The unexpected names, sorted.

    Raises:
        UserError: lists every missing, unexpected and wrongly shaped tensor.
    """
    missing = expected.keys() - tensors.keys()
    unexpected = tensors.keys() - expected.keys() - set(ignore)
    wrong_shapes = [
        f"{name} has shape {tensors[name].shape}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != tuple(shape)
    ]
    problems = [f"missing: {format_names(missing)}"] if missing else []
    if unexpected and not allow_unexpected:
        problems.append(f"unexpected: {format_names(unexpected)}")
    problems += [f"wrong shape: {'; '.join(wrong_shapes)}"] if wrong_shapes else []
    if problems:
        raise UserError(f"The tensors in {tensors.source} do not fit the model: {'; '.join(problems)}.")
    return sorted(unexpected, key=natural_sort_key)


def format_names(names: Iterable[str]) -> str:
    """Join names; those that differ only in their first number (the layer) become one name with ranges."""
    groups: dict[tuple[str, str], list[int]] = {}
    plain = []
    for name in sorted(names, key=natural_sort_key):
        parts = re.fullmatch(r"(.*?)(?<![^.])(\d+)(?![^.])(.*)", name)
        if parts:
            groups.setdefault((parts[1], parts[3]), []).append(int(parts[2]))
        else:
            plain.append(name)
    return ", ".join(plain + [f"{head}{_format_ranges(numbers)}{tail}" for (head, tail), numbers in groups.items()])


def _format_ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return text if len(numbers) == 1 else f"{{{text}}}"


def natural_sort_key(name: str) -> list[int | str]:
    """Return a key that sorts layer 2 before layer 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """Validate the file with the safetensors library, then read its header."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MAX_TEXT_BYTES:  # a model has thousands of tensors of a hundred bytes each
                raise ValueError(f"its header has {length:,} bytes, more than {MAX_TEXT_BYTES:,}")
            header = parse_json(file.read(length), object_pairs_hook=_unique_keys)
        with safetensors.safe_open(path, framework="numpy"):
            pass  # refuses gaps, overlaps, offsets beyond the file, shapes that do not match their bytes
        header.pop("__metadata__", None)
        return {name: _safetensor(path, 8 + length, entry) for name, entry in header.items()}
    except (safetensors.SafetensorError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not a valid safetensors file ({type(error).__name__}: {error}): download it again."
        ) from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"its header names {twice!r} twice")
    return content


def _safetensor(path: Path, data_start: int, entry: dict[str, Any]) -> LazyTensor:
    dtype = np.dtype(SAFETENSORS_DTYPES[entry["dtype"]])
    shape = tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    count = int(np.prod(shape, dtype=np.int64))
    if end - begin != count * dtype.itemsize:
        raise ValueError("a tensor's shape does not match its number of bytes")

    def read() -> np.ndarray:
        return np.fromfile(path, dtype, count, offset=data_start + begin).reshape(shape)

    return LazyTensor(shape, dtype, read)


class TorchFile:
    """A memory-mapped PyTorch file of tensors.

    Args:
        path: written by `torch.save`; opened at the first access.

    Raises:
        UserError: PyTorch is not installed.
    """

    def __init__(self, path: Path):
        try:
            import torch
        except ImportError:
            raise UserError(
                f"Reading {path} needs PyTorch: pip install 'seed-jax[torch]', or convert the file to safetensors."
            ) from None
        self._torch, self._path = torch, path
        self._state: dict[str, Any] = {}
        self._mapped = False
        self._bytes_read = 0

    def tensors(self) -> dict[str, Any]:
        """Return PyTorch tensors by name; {"model": ...}, {"module": ...} and {"state_dict": ...} are unwrapped."""
        if self._mapped and self._bytes_read > _REMAP_BYTES:
            self._state = {}
        if not self._state:
            self._state = self._open()
            self._bytes_read = 0
        return self._state

    def lazy_tensor(self, name: str) -> LazyTensor:
        """Describe one tensor, to be read later."""
        value = self.tensors()[name]
        return LazyTensor(tuple(value.shape), numpy_dtype(value), functools.partial(self.read, name))

    def read(self, name: str) -> np.ndarray:
        """Return one tensor as a NumPy array that keeps the mapping alive."""
        value = self.tensors()[name].detach().contiguous()
        self._bytes_read += value.numel() * value.element_size()
        if value.dtype == self._torch.bfloat16:
            return value.view(self._torch.int16).numpy().view(ml_dtypes.bfloat16)
        return value.numpy()

    def _open(self) -> dict[str, Any]:
        state = self._load()
        for _ in _WRAPPERS:  # a bound, because a pickle can contain itself
            key = next((k for k in _WRAPPERS if isinstance(state, dict) and isinstance(state.get(k), dict)), None)
            if key is None:
                break
            state = state[key]
        items = state.items() if isinstance(state, dict) else ()
        tensors = {str(name): value for name, value in items if isinstance(value, self._torch.Tensor)}
        if not tensors:
            raise UserError(f"{self._path} holds no dictionary of tensors: give a PyTorch state dict.")
        return tensors

    def _load(self) -> Any:
        self._refuse_compression()
        try:
            try:
                state = self._torch.load(self._path, map_location="cpu", weights_only=True, mmap=True)
                self._mapped = True
            except RuntimeError:  # the format before PyTorch 1.6 cannot be mapped
                state = self._torch.load(self._path, map_location="cpu", weights_only=True)
                self._mapped = False
        except Exception as error:  # torch raises errors of many types on files that are no checkpoints
            raise UserError(
                f"{self._path} cannot be read as a PyTorch file of plain tensors ({_torch_reason(error)}): it is "
                "truncated, of another format, or contains code, which is never executed; download it again."
            ) from error
        return state

    def _refuse_compression(self) -> None:
        """PyTorch never compresses what it saves; a small file that inflates to gigabytes is an attack."""
        try:
            if not zipfile.is_zipfile(self._path):
                return
            with zipfile.ZipFile(self._path) as archive:
                compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise UserError(f"{self._path} cannot be read as a PyTorch file ({error}): download it again.") from error
        if compressed:
            raise UserError(
                f"{self._path} is a compressed archive, which `torch.save` does not write: extract it first."
            )


def _torch_reason(error: Exception) -> str:
    """Return the cause of a failed `torch.load` without PyTorch's advice to execute the file's code."""
    text = str(error).strip()
    unpickler = re.search(r"WeightsUnpickler error: ([^\n]*)", text)
    reason = unpickler[1] if unpickler else text.split("\n")[0]
    return type(error).__name__ if not reason or "weights_only" in reason else reason.strip().rstrip(".")


def numpy_dtype(tensor: Any) -> np.dtype:
    """Return the NumPy dtype of a PyTorch tensor."""
    name = str(tensor.dtype).removeprefix("torch.")
    return np.dtype(getattr(ml_dtypes, name, name))


def write_torch(path: Path, source: Path, *, wrapper: str | None = None) -> Path:
    """Convert a safetensors file to a PyTorch state dict; its tensors are memory-mapped, not loaded.

    Args:
        path: the file to write.
        source: the safetensors file.
        wrapper: key under which the state dict is stored; None stores it plainly.

    Raises:
        UserError: PyTorch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise UserError(f"Writing {path.name} needs PyTorch: pip install 'seed-jax[torch]'.") from None
    with safetensors.safe_open(source, "pt") as file, atomic_path(path) as temporary:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        torch.save({wrapper: state} if wrapper else state, temporary)
    return path

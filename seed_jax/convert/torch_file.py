"""A file of tensors that PyTorch wrote: read as pure data, never executed, and mapped, never held whole."""

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

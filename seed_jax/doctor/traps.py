"""Common traps of JAX installations and environments: each a sentence with the remedy."""

import importlib.util
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seed_jax.doctor.environment import version

_TPU_FILES = ("/dev/accel", "/dev/vfio/")
_CUDA_PLUGINS = ("jax-cuda13-plugin", "jax-cuda12-plugin")


def find_traps(devices: Mapping[str, Any], root: Path = Path("/")) -> list[str]:
    """Return what is wrong or easily overlooked in this environment.

    Args:
        devices: as `environment.devices` describes them.
        root: of the file system.
    """
    traps = [*_platform_traps(devices, root), *_version_traps(), *_variable_traps()]
    if holder := tpu_holder(root):
        traps.append(
            f"The TPU is in use by process {holder}: one process at a time can use it; stop that one, such as another "
            "notebook's kernel."
        )
    return traps


def tpu_holder(root: Path = Path("/")) -> str | None:
    """Return another process that has a TPU's device file open, as "PID (command)"; None if none is seen."""
    for process in sorted((root / "proc").glob("[0-9]*")):
        if process.name == str(os.getpid()):
            continue
        try:
            targets = [str(link.readlink()) for link in (process / "fd").iterdir()]
        except OSError:  # of another user, or ended
            continue
        if any(target.startswith(_TPU_FILES) and target != "/dev/vfio/vfio" for target in targets):
            try:
                command = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
            except OSError:
                command = "unknown"
            return f"{process.name} ({command})"
    return None


def _platform_traps(devices: Mapping[str, Any], root: Path) -> list[str]:
    traps = []
    wanted = os.environ.get("JAX_PLATFORMS", "")
    on_cpu = devices.get("platform") == "cpu"
    has_gpu = (root / "dev/nvidia0").exists() or (root / "dev/nvidiactl").exists()
    has_tpu = any((root / "dev").glob("accel[0-9]*")) or any((root / "dev/vfio").glob("[0-9]*"))
    if on_cpu and wanted == "cpu" and (has_gpu or has_tpu):
        traps.append(
            f"JAX_PLATFORMS=cpu hides this machine's {'GPU' if has_gpu else 'TPU'}: unset it to use the accelerator."
        )
    elif on_cpu and has_gpu:
        missing = not any(importlib.util.find_spec(name.replace("-", "_")) for name in _CUDA_PLUGINS)
        cause = (
            "JAX is installed without CUDA: pip install 'seed-jax[cuda]'"
            if missing
            else ("JAX's CUDA plug-in did not start: compare its version with jaxlib's and the driver's (`nvidia-smi`)")
        )
        traps.append(f"There is an NVIDIA GPU, but JAX computes on the CPU. {cause}.")
    elif on_cpu and has_tpu:
        missing = importlib.util.find_spec("libtpu") is None
        cause = (
            "pip install 'seed-jax[tpu]'" if missing else "another process may use it, or libtpu is of another release"
        )
        traps.append(f"There is a TPU, but JAX computes on the CPU: {cause}.")
    if "error" in devices:
        cause = f"JAX_PLATFORMS={wanted} names a backend that is not there: unset it" if wanted else "see its message"
        if "in use" in devices["error"] or "libtpu_lockfile" in devices["error"]:
            cause = "the TPU is in use by another process: stop it, then remove /tmp/libtpu_lockfile if it remains"
        traps.append(f"No backend of JAX starts ({cause}).")
    if not on_cpu and wanted.startswith("cpu"):
        traps.append(f"JAX_PLATFORMS={wanted} is set, but JAX was imported before it took effect: set it earlier.")
    return traps


def _version_traps() -> list[str]:
    versions = {name: version(name) for name in ("jax", "jaxlib", *_CUDA_PLUGINS)}
    lib = versions["jaxlib"]
    traps = [
        f"{name} {found} and jaxlib {lib} are of different releases: install them together (`pip install -U jax`)."
        for name, found in versions.items()
        if lib and found and found.split(".")[:3] != lib.split(".")[:3]
    ]
    if all(versions[name] for name in _CUDA_PLUGINS):
        traps.append("JAX's plug-ins for CUDA 12 and CUDA 13 are both installed: uninstall one.")
    return traps


def _variable_traps() -> list[str]:
    traps = []
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        traps.append("XLA_FLAGS makes several devices of one CPU: programs become slower, not faster.")
    if "cuda" in os.environ.get("LD_LIBRARY_PATH", "").lower() and shutil.which("nvidia-smi"):
        traps.append("LD_LIBRARY_PATH names a CUDA directory, which can replace JAX's own libraries: unset it.")
    fraction = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION")
    if fraction and fraction.startswith(("0.", ".")) and float(fraction) < 0.7:
        traps.append(f"XLA_PYTHON_CLIENT_MEM_FRACTION={fraction} leaves a part of the GPU's memory unused.")
    if os.environ.get("JAX_ENABLE_X64", "").lower() in ("1", "true"):
        traps.append("JAX_ENABLE_X64 is set: TPUs emulate float64, and nothing here needs it.")
    if os.environ.get("JAX_DISABLE_JIT", "").lower() in ("1", "true"):
        traps.append("JAX_DISABLE_JIT is set: everything is computed operation by operation.")
    return traps

"""Choose JAX's backends before JAX is imported, so that an installed TPU library does not search for absent TPUs."""

import importlib.util
import os
from pathlib import Path

# Devices of TPU VMs (accel: v4 and before, vfio: v5e and later) and of NVIDIA GPUs.
_TPU_DEVICES = ("accel0", "vfio/0", "vfio/1")
_GPU_DEVICES = ("nvidia0", "nvidiactl", "dxg", "kfd")
_TPU_VARIABLES = ("TPU_NAME", "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", "COLAB_TPU_ADDR", "TPU_ACCELERATOR_TYPE")


def skip_absent_tpus(devices: Path = Path("/dev")) -> None:
    """Use the CPU backend alone where the TPU library is installed but there is no accelerator.

    Without this, libtpu queries the cloud's metadata server and prints warnings. Call it before JAX is
    imported; it changes nothing where `JAX_PLATFORMS` is set.

    Args:
        devices: directory of device files.
    """
    if os.environ.get("JAX_PLATFORMS") or importlib.util.find_spec("libtpu") is None:
        return
    if not has_accelerator(devices):
        os.environ["JAX_PLATFORMS"] = "cpu"


def has_accelerator(devices: Path = Path("/dev")) -> bool:
    """Return whether JAX may find a TPU or GPU, as device files and environment say; `JAX_PLATFORMS=cpu` excludes it.

    Args:
        devices: directory of device files.
    """
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms != "cpu"
    has_device = any((devices / name).exists() for name in (*_TPU_DEVICES, *_GPU_DEVICES))
    return has_device or any(os.environ.get(name) for name in _TPU_VARIABLES)

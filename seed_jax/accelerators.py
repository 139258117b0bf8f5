"""Accelerators: limits of each kind of chip, and the settings with which a training step runs best on it.

Peak FLOP/s, memory and bandwidths are the vendors' figures. Usable memory, the clock behind the compiler's cycle counts
and the settings come from compiling real steps with the TPU compiler ahead of time (docs/scaling.md); the settings for
GPUs are reasoned and not measured.
"""

import dataclasses
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seed_jax.errors import UserError

GIB = 2**30
# Overlap the all-gathers of weights with the matmuls of the previous layer; v5p, v4 and v6e do not do so by default.
ASYNC_GATHER = {
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
}
# By default, groups of 8 to 16 chips turn every all-gather into a ring of small matmuls: up to 1.7 times the cycles.
NO_WINDOWED_EINSUM = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


def _scoped_vmem(kib: int) -> dict[str, str]:
    """Return the option that lets one fusion use so much on-chip memory: its tiles fill the matrix units better."""
    return {"xla_tpu_scoped_vmem_limit_kib": str(kib)}


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One kind of chip and the settings for it.

    Attributes:
        name: as in `seed-jax plan --topology`, such as "v5e".
        device_kinds: prefixes of jax's `device_kind`.
        peak_flops: bfloat16 matmul FLOP/s of a chip.
        memory: bytes of a chip that a program may use.
        ici_bandwidth: bytes/s that a chip sends to its neighbours, summed over the links of one direction.
        dcn_bandwidth: bytes/s per chip to other slices or nodes, if the chips of a host share its network evenly.
        clock_hz: of the compiler's cycle counts; 0 if it gives none.
        cycle_scale: seconds of published runs over those of the compiler's cycle counts (docs/scaling.md); 1 where no
            run is known.
        tensor_cores: cores of a device that share the grid of a kernel.
        torus_dimensions: of the interconnect; 0 if it is no torus.
        wraparound_size: size from which on an axis of the torus closes to a ring.
        remat: default remat policy, see `seed_jax.models.nn.remat`.
        attention: default implementation, see `seed_jax.models.nn.attention`.
        microbatch_tokens: maximum tokens of a microbatch on a chip: more is no faster, or does not fit.
        compiler_options: XLA options with which the step is compiled.
        mesh: default mesh of a slice or node.
    """

    name: str
    device_kinds: tuple[str, ...]
    peak_flops: float
    memory: int
    ici_bandwidth: float
    dcn_bandwidth: float
    clock_hz: float = 0.0
    cycle_scale: float = 1.0
    tensor_cores: int = 1
    torus_dimensions: int = 0
    wraparound_size: int = 0
    remat: str = "full"
    attention: str = "xla"
    microbatch_tokens: int = 4096
    compiler_options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    mesh: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"replica": 1, "fsdp": -1, "tensor": 1})


ACCELERATORS = (
    Accelerator(
        "v4",
        ("TPU v4",),
        peak_flops=275e12,
        memory=int(30.75 * GIB),
        ici_bandwidth=300e9,
        dcn_bandwidth=6.25e9,
        clock_hz=1.05e9,
        tensor_cores=2,
        torus_dimensions=3,
        wraparound_size=4,
        remat="dots_no_batch",  # the results of all matmuls of two rows fit
        attention="splash",
        microbatch_tokens=4096,
        compiler_options=ASYNC_GATHER | NO_WINDOWED_EINSUM,
    ),
    Accelerator(
        "v5e",
        ("TPU v5 lite", "TPU v5e"),
        peak_flops=197e12,
        memory=int(15.75 * GIB),
        ici_bandwidth=200e9,
        dcn_bandwidth=6.25e9,
        clock_hz=1.5e9,
        cycle_scale=0.86,
        torus_dimensions=2,
        wraparound_size=16,
        remat="save_qkv",  # batch 4 per chip takes 12.6 to 13.9 GiB; "full" takes 5.9 and is 3 % slower
        attention="splash",  # XLA's attention takes a third of the cycles of a step at 2048 tokens
        microbatch_tokens=8192,
        compiler_options=ASYNC_GATHER | NO_WINDOWED_EINSUM | _scoped_vmem(98304),
    ),
    Accelerator(
        "v5p",
        ("TPU v5p", "TPU v5"),
        peak_flops=459e12,
        memory=int(95.74 * GIB),
        ici_bandwidth=600e9,
        dcn_bandwidth=6.25e9,
        clock_hz=1.75e9,
        cycle_scale=0.95,
        tensor_cores=2,
        torus_dimensions=3,
        wraparound_size=4,
        remat="dots_no_batch",  # fits, and recomputes only attention and norms
        attention="splash",
        microbatch_tokens=16384,  # twice the microbatch of v5e: 3 % faster per token
        compiler_options=ASYNC_GATHER | NO_WINDOWED_EINSUM | _scoped_vmem(65536),
    ),
    Accelerator(
        "v6e",
        ("TPU v6 lite", "TPU v6e"),
        peak_flops=918e12,
        memory=int(31.25 * GIB),
        ici_bandwidth=448e9,
        dcn_bandwidth=12.5e9,
        clock_hz=1.75e9,
        torus_dimensions=2,
        wraparound_size=16,
        remat="save_qkv",  # batch 8 per chip in 25.2 GiB is 14 % faster per token than batch 2 with "dots_no_batch"
        attention="splash",
        microbatch_tokens=16384,
        compiler_options=ASYNC_GATHER | NO_WINDOWED_EINSUM | _scoped_vmem(98304),
    ),
    Accelerator(
        "v7x",  # a chip has two JAX devices, which these figures are for: half a chip's
        ("TPU7x", "TPU v7x"),
        peak_flops=1153.5e12,
        memory=int(94.75 * GIB),
        ici_bandwidth=600e9,
        dcn_bandwidth=6.25e9,
        clock_hz=2.2e9,
        torus_dimensions=3,
        wraparound_size=4,
        remat="dots_no_batch",
        attention="splash",
        microbatch_tokens=16384,
        compiler_options=ASYNC_GATHER | NO_WINDOWED_EINSUM | _scoped_vmem(65536),
    ),
    # JAX takes 75 % of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise; 92 % leaves room for NCCL.
    Accelerator(
        "h100",
        ("NVIDIA H100",),
        peak_flops=989e12,
        memory=int(0.92 * 79 * GIB),
        ici_bandwidth=450e9,
        dcn_bandwidth=50e9,
        attention="cudnn",
        microbatch_tokens=8192,
    ),
    Accelerator(
        "h200",
        ("NVIDIA H200",),
        peak_flops=989e12,
        memory=int(0.92 * 139 * GIB),
        ici_bandwidth=450e9,
        dcn_bandwidth=50e9,
        attention="cudnn",
        microbatch_tokens=16384,
    ),
    Accelerator(
        "b200",
        ("NVIDIA B200",),
        peak_flops=2250e12,
        memory=int(0.92 * 167 * GIB),
        ici_bandwidth=900e9,
        dcn_bandwidth=50e9,
        attention="cudnn",
        microbatch_tokens=16384,
    ),
    Accelerator(
        "gb200",
        ("NVIDIA GB200",),
        peak_flops=2500e12,
        memory=int(0.92 * 173 * GIB),
        ici_bandwidth=900e9,
        dcn_bandwidth=50e9,
        attention="cudnn",
        microbatch_tokens=16384,
    ),
    Accelerator(
        "a100",
        ("NVIDIA A100",),
        peak_flops=312e12,
        memory=int(0.92 * 79 * GIB),
        ici_bandwidth=300e9,
        dcn_bandwidth=25e9,
        attention="cudnn",
    ),
    # No planning figures for CPUs; the peak is that of one core with AVX2 and only ranks plans.
    Accelerator("cpu", ("cpu",), peak_flops=5e10, memory=8 * GIB, ici_bandwidth=1e10, dcn_bandwidth=1e9),
)


def by_name(name: str) -> Accelerator:
    """Return the accelerator called `name`.

    Raises:
        UserError: there is none of that name.
    """
    for accelerator in ACCELERATORS:
        if accelerator.name == name:
            return accelerator
    raise UserError(f"Unknown accelerator {name!r}: expected one of {', '.join(a.name for a in ACCELERATORS)}.")


def for_device(device: Any) -> Accelerator | None:
    """Return the accelerator of a `jax.Device`, or None if it is not in the table."""
    for accelerator in ACCELERATORS:
        if device.device_kind.startswith(accelerator.device_kinds):
            return accelerator
    return None


def cpu_name() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def cpu_cores() -> int | None:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

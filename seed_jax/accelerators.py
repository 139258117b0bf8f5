"""What is known of each accelerator: its limits, and how a training step is best laid out on it.

Peaks, memory and links are the vendors' figures. Usable memory, the clock behind the compiler's cycle counts and the
settings were found by compiling real steps with the TPU compiler ahead of time (docs/scaling.md); the settings for GPUs
are reasoned and not measured.
"""

import dataclasses
from collections.abc import Mapping

import jax

from seed_jax.errors import UserError

GIB = 2**30
# Gathers of weights run beside the matrix products of the layer before; v5p, v4 and v6e do not do so by themselves.
ASYNC_GATHER = {
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
}
# Without it groups of 8 to 16 chips turn every gather into a ring of small products, which costs up to 1.7x the cycles.
NO_WINDOWED_EINSUM = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One kind of chip and the settings for it.

    Attributes:
        kinds: how jax's `device_kind` begins.
        peak: bfloat16 matmul FLOP/s of a chip.
        memory: bytes of a chip that a program may use.
        link: bytes/s a chip sends to its neighbours, all links of one direction together.
        wire: bytes/s a chip has to other slices or nodes, if its host's network is shared evenly.
        clock: Hz of the compiler's cycle counts; 0 where it gives none.
        dimensions: of the torus; 0 without one.
        wraps: size from which on an axis of the torus closes to a ring.
        remat: what layers keep by default, see `seed_jax.models.nn.remat`.
        attention: implementation, see `seed_jax.models.nn.attention`.
        tokens: most tokens of a microbatch on a chip: more no longer makes a step faster, or does not fit.
        compiler: options the step is compiled with.
        mesh: of a slice or node, where the config leaves it open.
    """

    name: str
    kinds: tuple[str, ...]
    peak: float
    memory: int
    link: float
    wire: float
    clock: float = 0.0
    dimensions: int = 0
    wraps: int = 0
    remat: str = "full"
    attention: str = "xla"
    tokens: int = 4096
    compiler: Mapping[str, str] = dataclasses.field(default_factory=dict)
    mesh: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"replica": 1, "fsdp": -1, "tensor": 1})


TABLE = (
    Accelerator(
        "v4",
        ("TPU v4",),
        peak=275e12,
        memory=int(30.75 * GIB),
        link=300e9,
        wire=6.25e9,
        clock=1.05e9,
        dimensions=3,
        wraps=4,
        remat="dots_no_batch",  # all products of two rows fit
        attention="splash",
        tokens=4096,
        compiler=ASYNC_GATHER | NO_WINDOWED_EINSUM,
    ),
    Accelerator(
        "v5e",
        ("TPU v5 lite", "TPU v5e"),
        peak=197e12,
        memory=int(15.75 * GIB),
        link=200e9,
        wire=6.25e9,
        clock=1.5e9,
        dimensions=2,
        wraps=16,
        remat="save_qkv",  # four rows fill 12.6 to 13.9 GiB; "full" takes 5.9 and is 3 % slower
        attention="splash",  # a third of the cycles of a step at 2048 tokens went into XLA's attention
        tokens=8192,
        compiler=ASYNC_GATHER | NO_WINDOWED_EINSUM,
    ),
    Accelerator(
        "v5p",
        ("TPU v5p", "TPU v5"),
        peak=459e12,
        memory=int(95.74 * GIB),
        link=600e9,
        wire=6.25e9,
        clock=1.75e9,
        dimensions=3,
        wraps=4,
        remat="dots_no_batch",  # there is room, and nothing but attention and norms is done twice
        attention="splash",
        tokens=16384,  # twice the rows of v5e: 3 % quicker a token
        compiler=ASYNC_GATHER | NO_WINDOWED_EINSUM,
    ),
    Accelerator(
        "v6e",
        ("TPU v6 lite", "TPU v6e"),
        peak=918e12,
        memory=int(31.25 * GIB),
        link=448e9,
        wire=12.5e9,
        clock=1.75e9,
        dimensions=2,
        wraps=16,
        remat="save_qkv",  # eight rows in 25.2 GiB take 14 % less time a token than two that keep all products
        attention="splash",
        tokens=16384,
        compiler=ASYNC_GATHER | NO_WINDOWED_EINSUM,
    ),
    # JAX takes 75 % of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise; 92 % leaves room for NCCL.
    Accelerator(
        "h100", ("NVIDIA H100",), peak=989e12, memory=int(0.92 * 79 * GIB), link=450e9, wire=50e9, attention="cudnn",
        tokens=8192,
    ),
    Accelerator(
        "h200", ("NVIDIA H200",), peak=989e12, memory=int(0.92 * 139 * GIB), link=450e9, wire=50e9, attention="cudnn",
        tokens=16384,
    ),
    Accelerator("a100", ("NVIDIA A100",), peak=312e12, memory=int(0.92 * 79 * GIB), link=300e9, wire=25e9,
                attention="cudnn"),
    # A CPU has no figures worth planning with; peak is that of one core with AVX2 and is only used to rank.
    Accelerator("cpu", ("cpu",), peak=5e10, memory=8 * GIB, link=1e10, wire=1e9),
)  # fmt: skip


def by_name(name: str) -> Accelerator:
    """Return the accelerator called `name`."""
    for accelerator in TABLE:
        if accelerator.name == name:
            return accelerator
    raise UserError(f"Unknown accelerator {name!r}: expected one of {', '.join(a.name for a in TABLE)}.")


def of_device(device: jax.Device) -> Accelerator | None:
    """Return what is known of a device, or None."""
    for accelerator in TABLE:
        if device.device_kind.startswith(accelerator.kinds):
            return accelerator
    return None

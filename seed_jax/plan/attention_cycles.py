"""Cycles of the splash attention kernels, from the TPU compiler's own schedule of each.

The compiler counts no cycles for Pallas kernels in a program, but it can write down the instruction bundles of a kernel
that is compiled alone. A bundle takes a cycle unless the matrix units are still busy, so a pair of blocks takes the
larger of its bundles and its matmuls at peak. `benchmarks/attention_bundles.py` prints the rows of the table.
"""

import dataclasses
from collections.abc import Mapping

from seed_jax.accelerators import Accelerator
from seed_jax.plan.executed_flops import KernelCall

BLOCK_SIZE = 512  # of queries and keys in the table; bundles grow with the area of a block, those of rows with its edge
HEAD_SIZE = 128
UNKNOWN_UTILIZATION = 0.5  # share of peak of kernels that are not in the table


@dataclasses.dataclass(frozen=True)
class KernelBundles:
    """Instruction bundles of a kernel on one tensor core.

    Attributes:
        matmuls: multiplications of a block of queries with a block of keys, each [512, 128] x [128, 512].
        block: for a pair of blocks.
        row: to initialize and write the accumulator of an outer block.
        step: for every grid step, also those that are skipped.
    """

    matmuls: int
    block: int
    row: int
    step: int


# jax 0.10.2, libtpu 0.0.42.1, causal with segments. Kernels: forward, and the gradients of queries and of keys, values.
BUNDLES: Mapping[str, Mapping[str, KernelBundles]] = {
    "v4": {
        "fwd": KernelBundles(2, 1714, 983, 404),
        "dq": KernelBundles(3, 1939, 183, 409),
        "dkv": KernelBundles(4, 2692, 375, 542),
    },
    "v5e": {
        "fwd": KernelBundles(2, 1192, 698, 63),
        "dq": KernelBundles(3, 1470, 172, 65),
        "dkv": KernelBundles(4, 1844, 334, 125),
    },
    "v5p": {
        "fwd": KernelBundles(2, 1164, 701, 197),
        "dq": KernelBundles(3, 1489, 172, 115),
        "dkv": KernelBundles(4, 1874, 334, 271),
    },
    "v6e": {
        "fwd": KernelBundles(2, 938, 348, 80),
        "dq": KernelBundles(3, 1088, 93, 73),
        "dkv": KernelBundles(4, 1318, 173, 151),
    },
    "v7x": {
        "fwd": KernelBundles(2, 934, 319, 96),
        "dq": KernelBundles(3, 1054, 68, 76),
        "dkv": KernelBundles(4, 1304, 161, 167),
    },
}


def kernel_seconds(call: KernelCall, chip: Accelerator) -> float:
    """Estimate the device seconds of a kernel's calls, summed over devices."""
    bundles = _bundles(call.name, chip)
    if bundles is None:
        return call.flops / (UNKNOWN_UTILIZATION * chip.peak_flops)
    table_flops = 2.0 * bundles.matmuls * BLOCK_SIZE * BLOCK_SIZE * HEAD_SIZE
    area = call.block_flops / table_flops
    core_flops = chip.peak_flops / chip.clock_hz / chip.tensor_cores  # per cycle
    block = max(bundles.block * area, call.block_flops / core_flops)
    cycles = call.blocks * block + call.block_rows * bundles.row * area**0.5 + call.steps * bundles.step
    return call.count * cycles / chip.clock_hz / chip.tensor_cores


def _bundles(name: str, chip: Accelerator) -> KernelBundles | None:
    """Return the table's row of a kernel such as "splash_mha_dq_segmented_no_residuals"."""
    table = BUNDLES.get(chip.name, {})
    return next((bundles for kind, bundles in table.items() if f"_{kind}_" in name), None)

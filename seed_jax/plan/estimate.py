"""Estimate the time of a compiled step.

    step = max(matmuls + kernels, overlapped collectives) + exposed collectives

Matmuls: the TPU compiler's own cycle counts (times trips of loops) over the clock, times the factor by which published
runs of this generation differ (`Accelerator.cycle_scale`); without a TPU compiler, a roofline: all matrix
multiplications at 60 % of peak. Kernels (splash attention): from their compiled schedules (`attention_cycles`).
Collectives: bytes that pass a chip's links, (g - 1) / g of what is all-gathered or reduce-scattered in a group of g and
twice that of what is all-reduced, over the ICI links of the torus dimensions that the group spans, halved where those
have no wraparound; between slices over DCN.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from seed_jax.plan import attention_cycles, hlo
from seed_jax.plan.executed_flops import ExecutedFlops
from seed_jax.plan.topology import Topology

MATMUL_UTILIZATION = 0.6  # without cycle counts
METHOD = (
    "the compiler's cycles over the clock, scaled to a published run where the generation has one, attention by its "
    "compiled schedule, collectives over the specified links; asynchronous ones overlap as far as matmuls last"
)
ROOFLINE_METHOD = (
    "a roofline: matmuls at 60 % of peak and attention at 50 %, collectives over the specified links; nothing was "
    "compiled for this accelerator"
)


@dataclasses.dataclass(frozen=True)
class CollectiveCost:
    """All collectives of a kind over the same mesh axes in a step.

    Attributes:
        kind: such as "all-gather".
        axes: mesh axes, joined by "+".
        overlaps: whether they are asynchronous.
        count: how many a step runs.
        bytes: of their payloads, in all.
        seconds: if nothing overlaps.
    """

    kind: str
    axes: str
    overlaps: bool
    count: int
    bytes: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of the parts of a step; their sum if as much overlaps as can (`step`) or nothing (`worst_case`)."""

    matmuls: float
    kernels: float
    overlapped: float
    exposed: float

    @property
    def step(self) -> float:
        return max(self.matmuls + self.kernels, self.overlapped) + self.exposed

    @property
    def worst_case(self) -> float:
        return self.matmuls + self.kernels + self.overlapped + self.exposed


def collective_costs(collectives: Sequence[hlo.Collective], mesh: Mesh, topology: Topology) -> list[CollectiveCost]:
    """Sum up collectives by kind and mesh axes, most bytes first."""
    sums: dict[tuple[str, str, bool], list[float]] = {}
    for collective in collectives:
        key = (collective.kind, _spanned_axes(collective.group, mesh), collective.overlaps)
        entry = sums.setdefault(key, [0, 0, 0.0])
        entry[0] += collective.times
        entry[1] += collective.bytes
        entry[2] += _seconds(collective, mesh, topology)
    rows = [CollectiveCost(*key, int(count), int(size), seconds) for key, (count, size, seconds) in sums.items()]
    return sorted(rows, key=lambda row: -row.bytes)


def step_time(module: hlo.Module, flops: ExecutedFlops, rows: Sequence[CollectiveCost], topology: Topology) -> StepTime:
    """Estimate the parts of a step."""
    chip, cycles = topology.accelerator, hlo.cycles(module)
    if cycles and chip.clock_hz:
        matmuls = chip.cycle_scale * cycles / chip.clock_hz
    else:
        matmuls = flops.matmuls / topology.chips / (MATMUL_UTILIZATION * chip.peak_flops)
    return StepTime(
        matmuls=matmuls,
        kernels=sum((attention_cycles.kernel_seconds(call, chip) for call in flops.kernel_calls), 0.0) / topology.chips,
        overlapped=sum((row.seconds for row in rows if row.overlaps), 0.0),
        exposed=sum((row.seconds for row in rows if not row.overlaps), 0.0),
    )


def _spanned_axes(group: tuple[int, ...], mesh: Mesh) -> str:
    """Name the mesh axes along which the members of a group differ."""
    if len(group) < 2 or max(group) >= mesh.size:
        return "?"
    coordinates = np.array(np.unravel_index(group, mesh.devices.shape))
    names = [name for name, row in zip(mesh.axis_names, coordinates, strict=True) if len(set(row.tolist())) > 1]
    return "+".join(names)


def _seconds(collective: hlo.Collective, mesh: Mesh, topology: Topology) -> float:
    group = collective.group
    if collective.kind == "send":  # between slices
        return collective.bytes / topology.accelerator.dcn_bandwidth
    if len(group) < 2 or max(group) >= mesh.size:
        return 0.0
    traffic = collective.bytes * (len(group) - 1) / len(group) * (2 if collective.kind == "all-reduce" else 1)
    if collective.kind == "collective-permute":
        traffic = collective.bytes
    devices = [mesh.devices.flat[index] for index in group]
    if len({getattr(device, "slice_index", 0) for device in devices}) > 1:
        return traffic / topology.accelerator.dcn_bandwidth
    return traffic / _ici_bandwidth(devices, topology)


def _ici_bandwidth(devices: Sequence[Any], topology: Topology) -> float:
    """Return bytes/s into a chip within a group, over the ICI links of the torus dimensions that the group spans."""
    chip = topology.accelerator
    if not topology.torus:
        return chip.ici_bandwidth
    coordinates = np.array([device.coords[: chip.torus_dimensions] for device in devices])
    share = 0.0
    for dimension, extent in enumerate(topology.torus):
        spanned = len(set(coordinates[:, dimension].tolist()))
        if spanned > 1:
            share += 1.0 if spanned == extent and extent % chip.wraparound_size == 0 else 0.5
    return chip.ici_bandwidth * share / chip.torus_dimensions

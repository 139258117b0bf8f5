"""From a compiled step to seconds: an estimate to rank layouts by, never checked against hardware.

    step = max(products + kernels, overlapping exchanges) + other exchanges

Products: the TPU compiler's own cycle counts (times trips of loops) over the clock; without a TPU compiler, all matrix
products at 60 % of peak. Kernels (splash): their products at half of peak. Exchanges: bytes that pass a chip's links,
(g - 1) / g of what is gathered or scattered in a group of g and twice that of what is all-reduced, over the links of
the torus dimensions that the group spans, halved where those do not close to a ring; between slices over the network.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from seed_jax.plan import hlo
from seed_jax.plan.topology import Topology
from seed_jax.plan.work import Work

SHARE_OF_PEAK = 0.6  # without cycle counts
KERNEL_SHARE_OF_PEAK = 0.5
METHOD = (
    "an estimate never checked on hardware: the compiler's cycles over the clock (or products at 60 % of peak), "
    "kernels at half of peak, exchanges over the specified links; overlapping ones are hidden as far as products last"
)


@dataclasses.dataclass(frozen=True)
class Exchange:
    """What chips send each other in a step: all collectives of a kind over the same mesh axes."""

    kind: str
    axes: str
    overlaps: bool
    count: int
    bytes: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Parts of a step, and their sum if as much overlaps as can (`step`) or nothing does (`most`)."""

    products: float
    kernels: float
    overlapping: float
    exposed: float

    @property
    def step(self) -> float:
        return max(self.products + self.kernels, self.overlapping) + self.exposed

    @property
    def most(self) -> float:
        return self.products + self.kernels + self.overlapping + self.exposed


def exchanges(found: Sequence[hlo.Collective], mesh: Mesh, topology: Topology) -> list[Exchange]:
    """Add collectives up by kind and mesh axes, most bytes first."""
    sums: dict[tuple[str, str, bool], list[float]] = {}
    for each in found:
        key = (each.kind, _axes(each.group, mesh), each.overlaps)
        entry = sums.setdefault(key, [0, 0, 0.0])
        entry[0] += each.times
        entry[1] += each.bytes
        entry[2] += _seconds(each, mesh, topology)
    rows = [Exchange(*key, int(count), int(size), seconds) for key, (count, size, seconds) in sums.items()]
    return sorted(rows, key=lambda row: -row.bytes)


def seconds(module: hlo.Module, work: Work, rows: Sequence[Exchange], topology: Topology) -> Seconds:
    """Add up the parts of a step."""
    chip, cycles = topology.accelerator, hlo.cycles(module)
    if cycles and chip.clock:
        products = cycles / chip.clock
    else:
        products = work.products / topology.chips / (SHARE_OF_PEAK * chip.peak)
    return Seconds(
        products=products,
        kernels=work.kernels / topology.chips / (KERNEL_SHARE_OF_PEAK * chip.peak),
        overlapping=sum((row.seconds for row in rows if row.overlaps), 0.0),
        exposed=sum((row.seconds for row in rows if not row.overlaps), 0.0),
    )


def _axes(group: tuple[int, ...], mesh: Mesh) -> str:
    """Name the mesh axes along which the members of a group differ."""
    if len(group) < 2 or max(group) >= mesh.size:
        return "?"
    places = np.array(np.unravel_index(group, mesh.devices.shape))
    names = [name for name, row in zip(mesh.axis_names, places, strict=True) if len(set(row.tolist())) > 1]
    return "+".join(names)


def _seconds(each: hlo.Collective, mesh: Mesh, topology: Topology) -> float:
    group = each.group
    if each.kind == "send":  # what slices exchange is sent by name
        return each.bytes / topology.accelerator.wire
    if len(group) < 2 or max(group) >= mesh.size:
        return 0.0
    passing = each.bytes * (len(group) - 1) / len(group) * (2 if each.kind == "all-reduce" else 1)
    if each.kind == "collective-permute":
        passing = each.bytes
    devices = [mesh.devices.flat[index] for index in group]
    if len({getattr(device, "slice_index", 0) for device in devices}) > 1:
        return passing / topology.accelerator.wire
    return passing / _link(devices, topology)


def _link(devices: Sequence[object], topology: Topology) -> float:
    """Return bytes/s into a chip within a group: the links of the torus dimensions that the group spans."""
    chip = topology.accelerator
    if not topology.extents:
        return chip.link
    places = np.array([device.coords[: chip.dimensions] for device in devices])
    share = 0.0
    for dimension, extent in enumerate(topology.extents):
        spanned = len(set(places[:, dimension].tolist()))
        if spanned > 1:
            share += 1.0 if spanned == extent and extent % chip.wraps == 0 else 0.5
    return chip.link * share / chip.dimensions

"""Topologies to compile for: TPU pods by the TPU compiler, other accelerators with CPU devices in their place."""

import contextlib
import dataclasses
import math
import os
import re
from typing import Any

import jax

from seed_jax import accelerators
from seed_jax.accelerators import Accelerator
from seed_jax.errors import UserError

_TPU = re.compile(r"(v4|v5e|v5p|v6e|v7x):(\d+x\d+(?:x\d+)?)")
_TOPOLOGY_NAMES = {"v7x": "tpu7x"}  # where the compiler's differ
_OTHER = re.compile(r"(gb200|b200|h100|h200|a100|cpu):(\d+)")
MAX_CHIPS = 2**14  # of all slices; beyond the largest pods
EXAMPLES = "v5e:16x16, v6e:16x16, v4:4x4x4, v5p:4x4x4, v7x:4x4x4, h100:8, b200:8, gb200:72 or cpu:8"


@dataclasses.dataclass(frozen=True, eq=False)
class Topology:
    """Devices to build a mesh from.

    Attributes:
        name: as given.
        accelerator: the kind of chip.
        devices: of all slices.
        slices: joined by DCN.
        torus: size of each dimension of a slice's torus; () without one.
        exact: whether the accelerator's own compiler is used; otherwise the CPU's, for as many CPU devices.
    """

    name: str
    accelerator: Accelerator
    devices: tuple[Any, ...]
    slices: int
    torus: tuple[int, ...]
    exact: bool

    @property
    def chips(self) -> int:
        return len(self.devices)


def find(name: str, slices: int = 1) -> Topology:
    """Return the topology called `name`, such as "v5e:16x16".

    Raises:
        UserError: there is no such topology, or its compiler is not installed.
    """
    if slices < 1:
        raise UserError(f"--slices is {slices}, expected 1 or more.")
    if match := _TPU.fullmatch(name) or _OTHER.fullmatch(name):
        extents = tuple(int(extent) for extent in match[2].split("x"))
        count = math.prod(extents) * slices
        if not 0 < count <= MAX_CHIPS:
            raise UserError(f"--topology {name} has {count} chips in all slices, expected 1 to {MAX_CHIPS}.")
        if _TPU.fullmatch(name):
            return _tpu(name, accelerators.by_name(match[1]), extents, slices)
        return Topology(name, accelerators.by_name(match[1]), _cpus(count), slices, (), exact=match[1] == "cpu")
    raise UserError(f"--topology {name} is not known: expected for example {EXAMPLES}.")


def prepare() -> None:
    """Use the CPU backend only, even if there are accelerators; call it before any device is used."""
    jax.config.update("jax_platforms", "cpu")


def _tpu(name: str, accelerator: Accelerator, torus: tuple[int, ...], slices: int) -> Topology:
    if len(torus) != accelerator.torus_dimensions:
        raise UserError(
            f"--topology {name} does not exist: {accelerator.name} has {accelerator.torus_dimensions} dimensions."
        )
    # The compiler must neither query a cloud's metadata server nor refuse because another process uses libtpu.
    for key, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(key, value)
    from jax.experimental import topologies

    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise UserError(
            f"--topology {name} needs the TPU compiler, which is not installed: pip install 'seed-jax[tpu]'."
        ) from None
    is_flat = accelerator.torus_dimensions == 2
    wrap = tuple(extent % accelerator.wraparound_size == 0 for extent in torus) + (False,) * is_flat
    options: dict[str, Any] = {"wrap": wrap} | ({"num_slices": slices} if slices > 1 else {})
    if accelerator.name == "v4":  # one device per chip, not per core
        options |= {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}
    elif math.prod(torus) == 1:
        options |= {"chips_per_host_bounds": (1, 1, 1)}
    compiler_name = name.replace(accelerator.name, _TOPOLOGY_NAMES.get(accelerator.name, accelerator.name))
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=compiler_name, **options)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--topology {name} does not exist ({reason}): expected for example {EXAMPLES}.") from error
    return Topology(name, accelerator, tuple(description.devices), slices, torus, exact=True)


def _cpus(count: int) -> tuple[Any, ...]:
    with contextlib.suppress(RuntimeError):  # already initialized: the check below tells whether there are enough
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(
            f"{count} devices are needed, but this process has initialized {len(devices)} CPU devices already."
        )
    return tuple(devices[:count])

"""Published training runs that the estimate was compared with, and the error bars that follow.

`Accelerator.cycle_scale` was fitted to one run of a generation and frozen on 28 November 2026, before the settings in
`accelerators` were changed by what the estimate says (docs/scaling.md, "How good is the estimate").
"""

import dataclasses
import math
from collections.abc import Mapping

from seed_jax.accelerators import Accelerator
from seed_jax.models.llama.config import LlamaConfig

_MAXTEXT_32B = LlamaConfig(32000, 8192, 28672, 32, 64, 64)
_MAXTEXT = "https://github.com/AI-Hypercomputer/maxtext/tree/main/src/maxtext/configs/tpu"
MARGINS = (0.9, 1.15)  # where a run of the generation was fitted
UNCALIBRATED = (0.8, 1.3)  # elsewhere


@dataclasses.dataclass(frozen=True)
class PublishedRun:
    """Full fine-tuning of a LLaMA with AdamW in float32, at sequence length 2048.

    Attributes:
        name: of the run.
        source: where its figures were published.
        topology: as for `seed-jax plan`.
        sizes: of the model.
        rows: sequences per chip.
        remat: rematerialization policy.
        mesh: sizes of the mesh axes.
        seconds: published time of a step.
        planned: the frozen estimate of a step.
    """

    name: str
    source: str
    topology: str
    sizes: LlamaConfig
    rows: int
    remat: str
    mesh: Mapping[str, int]
    seconds: float
    planned: float

    @property
    def accelerator(self) -> str:
        return self.topology.partition(":")[0]

    @property
    def chips(self) -> int:
        return math.prod(map(int, self.topology.partition(":")[2].split("x")))


RUNS: tuple[PublishedRun, ...] = (
    PublishedRun(
        "MaxText 32B, v5e-256",
        f"{_MAXTEXT}/v5e/README.md",
        "v5e:16x16",
        _MAXTEXT_32B,
        rows=4,
        remat="full",
        mesh={"fsdp": 256},
        seconds=12.10,
        planned=12.07,
    ),
    PublishedRun(
        "MaxText 32B, v5p-128",
        f"{_MAXTEXT}/v5p/README.md",
        "v5p:4x4x4",
        _MAXTEXT_32B,
        rows=6,
        remat="dots_no_batch",
        mesh={"fsdp": 16, "tensor": 4},
        seconds=7.30,
        planned=7.29,
    ),
)


def runs_of(accelerator: str) -> tuple[PublishedRun, ...]:
    """Return the published runs of a generation."""
    return tuple(run for run in RUNS if run.accelerator == accelerator)


def error_bars(chip: Accelerator) -> tuple[float, float]:
    """Return the least and the greatest ratio of a real step's time to its estimate that are to be expected."""
    return MARGINS if runs_of(chip.name) else UNCALIBRATED

"""Count the FLOPs that a step executes, recomputation included, from its jaxpr."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core


@dataclasses.dataclass(frozen=True)
class KernelCall:
    """A causal attention kernel (Pallas), called `count` times by all devices together.

    Attributes:
        name: of the kernel, such as "splash_mha_fwd_segmented_residuals".
        grid: its steps; the last two dimensions are blocks of queries and of keys.
        block_flops: matmul FLOPs of one pair of blocks.
        count: calls in a step.
    """

    name: str
    grid: tuple[int, ...]
    block_flops: float
    count: float = 1.0

    @property
    def steps(self) -> int:
        """Grid steps, with those that are skipped."""
        return math.prod(self.grid)

    @property
    def block_rows(self) -> int:
        """Outer blocks: each initializes and writes an accumulator."""
        return math.prod(self.grid[:-1])

    @property
    def blocks(self) -> float:
        """Pairs of blocks that are computed: those above the diagonal are skipped."""
        size = max(self.grid[-2:], default=1)
        return self.steps * (size + 1) / (2 * size)

    @property
    def flops(self) -> float:
        return self.blocks * self.block_flops * self.count


@dataclasses.dataclass(frozen=True)
class ExecutedFlops:
    """FLOPs of a step on all devices together.

    Attributes:
        matmuls: of matrix multiplications.
        kernel_calls: Pallas kernels.
    """

    matmuls: float
    kernel_calls: tuple[KernelCall, ...] = ()

    @property
    def kernels(self) -> float:
        """FLOPs of matrix multiplications inside Pallas kernels."""
        return sum((call.flops for call in self.kernel_calls), 0.0)

    def __add__(self, other: "ExecutedFlops") -> "ExecutedFlops":
        return ExecutedFlops(self.matmuls + other.matmuls, self.kernel_calls + other.kernel_calls)

    def times(self, count: float | int) -> "ExecutedFlops":
        """Return the FLOPs of `count` repetitions."""
        calls = tuple(dataclasses.replace(call, count=call.count * count) for call in self.kernel_calls)
        return ExecutedFlops(self.matmuls * count, calls)


def count_flops(jaxpr: core.Jaxpr) -> ExecutedFlops:
    """Sum up matrix multiplications, times the trips of their loops; of a conditional's branches the largest counts."""
    total = ExecutedFlops(0.0)
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            total += ExecutedFlops(_dot_general_flops(equation))
        elif name == "scan":
            total += count_flops(parameters["jaxpr"].jaxpr).times(parameters["length"])
        elif name == "cond":
            total += max((count_flops(branch.jaxpr) for branch in parameters["branches"]), key=lambda w: w.matmuls)
        elif name == "shard_map":
            devices = math.prod(parameters["mesh"].shape[axis] for axis in parameters["newly_manual_axes"])
            total += count_flops(_unwrap(parameters["jaxpr"])).times(devices)
        elif name == "pallas_call":
            inner = count_flops(_unwrap(parameters["jaxpr"])).matmuls
            call = KernelCall(_kernel_name(parameters), tuple(parameters["grid_mapping"].grid), inner)
            total += ExecutedFlops(0.0, (call,))
        else:
            for nested in _nested_jaxprs(parameters):
                total += count_flops(nested)
    return total


def _unwrap(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _kernel_name(parameters: dict[str, Any]) -> str:
    return str(getattr(parameters.get("name_and_src_info"), "name", parameters.get("name", "")))


def _nested_jaxprs(parameters: dict[str, Any]) -> Iterator[core.Jaxpr]:
    for value in parameters.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            unwrapped = _unwrap(item)
            if hasattr(unwrapped, "eqns"):
                yield unwrapped


def _dot_general_flops(equation: Any) -> float:
    (contracted, _), (batch, _) = equation.params["dimension_numbers"]
    left, right = (variable.aval.shape for variable in equation.invars[:2])
    # [batch, m, k] x [batch, k, n]: 2 * batch * m * n * k.
    return 2.0 * math.prod(left) * math.prod(right) / math.prod(left[axis] for axis in (*contracted, *batch))


def executed_flops(traced: jax.stages.Traced) -> ExecutedFlops:
    """Count the FLOPs of a traced program."""
    return count_flops(traced.jaxpr.jaxpr)

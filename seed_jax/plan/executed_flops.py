"""Count the FLOPs that a step executes, recomputation included, from its jaxpr."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core

# A causal attention kernel skips the blocks above the diagonal: of 2048 positions in blocks of 512, 10 of 16 remain.
CAUSAL_BLOCK_SHARE = 0.625


@dataclasses.dataclass(frozen=True)
class ExecutedFlops:
    """FLOPs of a step on all devices together.

    Attributes:
        matmuls: of matrix multiplications.
        kernels: of matrix multiplications inside Pallas kernels.
    """

    matmuls: float
    kernels: float

    def __add__(self, other: "ExecutedFlops") -> "ExecutedFlops":
        return ExecutedFlops(self.matmuls + other.matmuls, self.kernels + other.kernels)

    def times(self, count: float | int) -> "ExecutedFlops":
        """Return the FLOPs of `count` repetitions."""
        return ExecutedFlops(self.matmuls * count, self.kernels * count)


def count_flops(jaxpr: core.Jaxpr) -> ExecutedFlops:
    """Sum up matrix multiplications, times the trips of their loops; of a conditional's branches the largest counts."""
    total = ExecutedFlops(0.0, 0.0)
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            total += ExecutedFlops(_dot_general_flops(equation), 0.0)
        elif name == "scan":
            total += count_flops(parameters["jaxpr"].jaxpr).times(parameters["length"])
        elif name == "cond":
            total += max((count_flops(branch.jaxpr) for branch in parameters["branches"]), key=lambda w: w.matmuls)
        elif name == "shard_map":
            devices = math.prod(parameters["mesh"].shape[axis] for axis in parameters["newly_manual_axes"])
            total += count_flops(_unwrap(parameters["jaxpr"])).times(devices)
        elif name == "pallas_call":
            inner = count_flops(_unwrap(parameters["jaxpr"])).matmuls * math.prod(parameters["grid_mapping"].grid)
            total += ExecutedFlops(0.0, inner * CAUSAL_BLOCK_SHARE)
        else:
            for nested in _nested_jaxprs(parameters):
                total += count_flops(nested)
    return total


def _unwrap(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


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

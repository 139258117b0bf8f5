"""Count the floating-point operations a step will do, recomputation included, from the traced program."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core

# A causal kernel skips the blocks above the diagonal: of 2048 positions in blocks of 512, 10 of 16 remain.
CAUSAL_BLOCKS = 0.625


@dataclasses.dataclass(frozen=True)
class Work:
    """FLOPs of a step on all devices together: of matrix products, and of those inside hand-written kernels."""

    products: float
    kernels: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.products + other.products, self.kernels + other.kernels)

    def times(self, count: float | int) -> "Work":
        return Work(self.products * count, self.kernels * count)


def count(jaxpr: core.Jaxpr) -> Work:
    """Add up every matrix product, in loops as often as they run; of the branches of a condition the largest counts."""
    total = Work(0.0, 0.0)
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            total += Work(_product(equation), 0.0)
        elif name == "scan":
            total += count(parameters["jaxpr"].jaxpr).times(parameters["length"])
        elif name == "cond":
            total += max((count(branch.jaxpr) for branch in parameters["branches"]), key=lambda w: w.products)
        elif name == "shard_map":
            devices = math.prod(parameters["mesh"].shape[axis] for axis in parameters["newly_manual_axes"])
            total += count(_open(parameters["jaxpr"])).times(devices)
        elif name == "pallas_call":
            inner = count(_open(parameters["jaxpr"])).products * math.prod(parameters["grid_mapping"].grid)
            total += Work(0.0, inner * CAUSAL_BLOCKS)
        else:
            for inner in _inner(parameters):
                total += count(inner)
    return total


def _open(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _inner(parameters: dict[str, Any]) -> Iterator[core.Jaxpr]:
    for value in parameters.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            opened = _open(each)
            if hasattr(opened, "eqns"):
                yield opened


def _product(equation: Any) -> float:
    (contracted, _), (batch, _) = equation.params["dimension_numbers"]
    left, right = (variable.aval.shape for variable in equation.invars[:2])
    # batch m k times batch k n: 2 batch m n k.
    return 2.0 * math.prod(left) * math.prod(right) / math.prod(left[axis] for axis in (*contracted, *batch))


def of(traced: jax.stages.Traced) -> Work:
    return count(traced.jaxpr.jaxpr)

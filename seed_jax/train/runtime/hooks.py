"""The interface of what happens around training steps: checkpoints, evaluation, profiling, watchdogs."""

import dataclasses
from collections.abc import Mapping

import jax

from seed_jax.train.state import TrainState
from seed_jax.typing import Tree


@dataclasses.dataclass(frozen=True, eq=False)
class StepResult:
    """A step that was dispatched to the devices; its arrays may still be computed.

    Attributes:
        step: number of the step, from 1.
        state: after the step; donated to the next one.
        frozen: variables that are not trained.
        metrics: scalars on the device.
        is_last: whether it is the last step of the run.
        is_stopping: whether the run ends after it because of a preemption.
    """

    step: int
    state: TrainState
    frozen: Tree
    metrics: Mapping[str, jax.Array]
    is_last: bool
    is_stopping: bool


class Hook:
    """Something that happens around steps; a subclass overrides what it needs."""

    def before_step(self, step: int) -> None:
        """Run before `step` is dispatched."""

    def after_step(self, result: StepResult) -> None:
        """Run after a step is dispatched, before the next one."""

"""The interface between the training loop and what is trained.

The loop in `seed_jax.train.loop` runs any stage; a stage knows nothing of optimizers, mesh shapes or checkpoints.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

import flax.struct
import jax
import numpy as np
from jaxtyping import Array, Key

from seed_jax.errors import UserError
from seed_jax.files import AnyPath
from seed_jax.losses.next_token import WeightedSum
from seed_jax.train.config import TrainConfig
from seed_jax.typing import ParamPath, Tree

if TYPE_CHECKING:  # the inference side, which a stage needs for tasks only
    from seed_jax.evaluation.eval_model import EvalModel

Config = TypeVar("Config", bound=TrainConfig)


@flax.struct.dataclass
class LossOutput:
    """The loss to minimize and the metrics to report, all as (sum, weight).

    Attributes:
        total: what is differentiated.
        metrics: name -> value, reported as means.
        statistics: what `Stage.update_statistics` needs of the batch; summed over microbatches.
    """

    total: WeightedSum
    metrics: Mapping[str, WeightedSum]
    statistics: Mapping[str, Array] = flax.struct.field(default_factory=dict)


@runtime_checkable
class Batches(Protocol):
    """An iterator over this process's part of each global batch, with an exact position.

    It has no end unless `resume_state.has_ended` tells one from its state; training then stops.
    """

    def __next__(self) -> dict[str, Any]: ...

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True, eq=False)
class ShownSample:
    """What an evaluation generated for one sample, to look at.

    Attributes:
        text: request and answer.
        images: uint8 [H, W, 3] each: of the request, and what was drawn.
    """

    text: str
    images: tuple[np.ndarray, ...] = ()


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """A measurement taken while training.

    Attributes:
        name: prefix of its metrics.
        every_steps: steps between measurements; it also runs after the last step.
        run: variables -> metrics by name.
        samples: returns what the last `run` generated.
    """

    name: str
    every_steps: int
    run: Callable[[Tree], dict[str, float]]
    samples: Callable[[], Sequence[ShownSample]] = tuple


class Stage(abc.ABC, Generic[Config]):
    """One kind of training: what is trained, on which loss and data.

    A stage is constructed from its configuration alone and then knows the shapes of everything, which is all that
    compiling its step takes (`seed-jax plan`). Training calls `prepare` first, which finds or makes data and weights.

    Attributes:
        config_class: dataclass of its options.
        kind: kind of the model directory that training writes.
        unit: what `units_per_batch` counts.
        untracked_collections: variable collections that the stage updates itself; the optimizer keeps no moments.
        batch_size: rows of the global batch.
    """

    config_class: ClassVar[type[TrainConfig]]
    kind: str
    unit: ClassVar[str] = "images"
    untracked_collections: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Config):
        self.config = config

    @property
    @abc.abstractmethod
    def batch_size(self) -> int: ...

    @property
    def units_per_batch(self) -> int:
        """Units (tokens or images) of a global batch, for throughput."""
        return self.batch_size

    # What the compiled step depends on.

    @abc.abstractmethod
    def abstract_variables(self) -> Tree:
        """Return the variables' shapes as `init` of Flax modules does, boxed with logical axis names."""

    @abc.abstractmethod
    def is_trainable(self, path: ParamPath) -> bool:
        """Whether the variable at a path (collection first) is trained."""

    @abc.abstractmethod
    def loss(self, variables: Tree, batch: Mapping[str, Array], key: Key[Array, ""]) -> LossOutput:
        """Compute the loss of a batch; `key` is for dropout and noise."""

    @abc.abstractmethod
    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Return name -> shape and dtype of one row of a batch."""

    def update_statistics(self, before: Tree, after: Tree, statistics: Mapping[str, Array]) -> Tree:
        """Update what training changes without a gradient, such as running statistics.

        Args:
            before: trained variables before the optimizer's update.
            after: trained variables after it.
            statistics: `LossOutput.statistics` of the whole batch.

        Returns:
            The trained variables after the step.
        """
        del before, statistics
        return after

    @abc.abstractmethod
    def flops_per_unit(self) -> float:
        """Return model FLOPs of a training step per unit, for MFU."""

    @property
    @abc.abstractmethod
    def flops_convention(self) -> str:
        """What `flops_per_unit` counts."""

    # What a run needs beyond that.

    @abc.abstractmethod
    def prepare(self, workdir: AnyPath) -> None:
        """Find data and weights; make the data of the demo below `workdir`.

        Raises:
            UserError: something is missing; the message names the command that makes it.
        """

    @abc.abstractmethod
    def init_variables(self, key: Key[Array, ""], shardings: Tree) -> Tree:
        """Return fresh or loaded variables, unboxed and sharded by `shardings`."""

    @abc.abstractmethod
    def batches(self, local_indices: list[int]) -> Batches:
        """Return the batches of this process.

        Args:
            local_indices: rows of the global batch that this process supplies.
        """

    @abc.abstractmethod
    def model_config(self) -> dict[str, Any]:
        """Return the architecture as `config.json` holds it; a resumed run must have the same."""

    def references(self) -> dict[str, Any]:
        """Return what else `config.json` holds: the prompt style, and paths of models that belong to this one."""
        return {}

    def model_files(self) -> dict[str, Path]:
        """Return name -> file to copy into the model directory, such as a text tokenizer's."""
        return {}

    def evaluators(self) -> tuple[Evaluator, ...]:
        """Return the measurements to take while training."""
        return ()

    def eval_model(self) -> "Callable[[Tree], EvalModel]":
        """Return a function from the variables to the model that `evaluate.tasks` answers with.

        Raises:
            UserError: the stage trains no such model.
        """
        raise UserError(
            f"evaluate.tasks needs a language model, which stage {self.config.stage} does not train: leave it empty,"
            " and evaluate the finished model with `seed-jax eval`."
        )

    def finish(self, variables: Tree, workdir: AnyPath) -> None:
        """Run after the last step, outside the mesh."""
        del variables, workdir

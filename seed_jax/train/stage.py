"""What a stage of training is: parameters that train, a loss, batches.

The loop in `seed_jax.train.loop` runs any stage; a stage knows nothing of optimizers, meshes' shapes or checkpoints.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
from jaxtyping import Array, Key

from seed_jax.errors import UserError
from seed_jax.losses.next_token import WeightedSum

ParamPath = tuple[str, ...]


@flax.struct.dataclass
class LossOutput:
    """The loss to descend and what to report beside it, all as (sum, weight).

    `observed` is what the stage's `after_step` wants to know of the batch; it is added up over microbatches.
    """

    total: WeightedSum
    metrics: Mapping[str, WeightedSum]
    observed: Mapping[str, Array] = flax.struct.field(default_factory=dict)


@runtime_checkable
class Batches(Protocol):
    """An endless iterator of this process's rows whose position can be saved and restored exactly."""

    def __next__(self) -> dict[str, Any]: ...

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """A measurement taken now and then: `run` gets the variables and returns named numbers."""

    name: str
    every_steps: int
    run: Callable[[dict[str, Any]], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One kind of training.

    Attributes:
        kind: of the model directory that training yields ("llama", "seed_tokenizer", ...).
        model_config: what `config.json` of that directory holds beside kind and provenance.
        files: name -> file that belongs into the model directory (a text tokenizer's).
        abstract: fresh variables as `init` returns them, boxed with logical names; used for shapes and shardings.
        init: (key, shardings) -> unboxed variables, fresh or loaded, lying as `shardings` says.
        trainable: whether the variable at a path (collection first) is trained.
        loss: (variables, batch, key) -> LossOutput; deterministic where no key is used.
        batches: rows of the global batch that this process supplies -> iterator.
        batch_size: rows of the global batch.
        row_spec: name -> shape and dtype of one row, so that the step is compiled before the first batch.
        tokens_per_batch: positions of a global batch (padding included), for throughput.
        unit: what `tokens_per_batch` and `flops_per_token` count, if not tokens.
        flops_per_token: model FLOPs of a training step per position, for MFU.
        flops_convention: what `flops_per_token` counts.
        evaluators: measured while training and after the last step.
        after_step: (trained variables before the optimizer, the same after it, observed) -> trained variables, for what
            changes without being descended: running statistics.
        finish: called after the last step with (variables, workdir); prints what the stage has learnt.
    """

    kind: str
    model_config: dict[str, Any]
    files: dict[str, Path]
    abstract: Callable[[], dict[str, Any]]
    init: Callable[[Key[Array, ""], Any], dict[str, Any]]
    trainable: Callable[[ParamPath], bool]
    loss: Callable[[dict[str, Any], dict[str, Array], Key[Array, ""]], LossOutput]
    batches: Callable[[list[int]], Batches]
    batch_size: int
    row_spec: dict[str, jax.ShapeDtypeStruct]
    tokens_per_batch: int
    flops_per_token: float
    flops_convention: str
    evaluators: tuple[Evaluator, ...] = ()
    unit: str = "tokens"
    after_step: Callable[[dict[str, Any], dict[str, Any], Mapping[str, Array]], dict[str, Any]] | None = None
    finish: Callable[[dict[str, Any], Path], None] = lambda variables, workdir: None


def no_batches(rows: list[int]) -> Batches:
    """Stand in for the batches of a stage that is only compiled."""
    raise UserError(f"A stage made for a plan has no data for its {len(rows)} rows.")

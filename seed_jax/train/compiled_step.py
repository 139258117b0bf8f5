"""The step of a run as one program: what training runs is what `seed-jax plan` compiles."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import optax
from jax.sharding import Mesh

from seed_jax import accelerators, sharding
from seed_jax.errors import UserError
from seed_jax.train.config import TrainConfig
from seed_jax.train.optimizer import check_slow, make_optimizer, make_schedule
from seed_jax.train.stage import Stage
from seed_jax.train.state import AbstractState, abstract_state
from seed_jax.train.step import make_step


@dataclasses.dataclass(frozen=True, eq=False)
class TrainProgram:
    """A step, the shapes and shardings of its arguments, and how to compile it.

    Attributes:
        mesh: devices, which need not exist on this machine.
        optimizer: the optimizer.
        abstract: shapes and shardings of the state and of the frozen variables.
        step: jitted `(state, frozen, batch) -> (state, metrics)`; the state is donated.
        batch: shapes and shardings of a global batch.
        compiler_options: for XLA.
    """

    mesh: Mesh
    optimizer: optax.GradientTransformation
    abstract: AbstractState
    step: Any
    batch: dict[str, jax.ShapeDtypeStruct]
    compiler_options: Mapping[str, str]

    def trace(self) -> jax.stages.Traced:
        """Trace the step for its shapes."""
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(sharding.LOGICAL_AXIS_RULES):
            return self.step.trace(self.abstract.state, self.abstract.frozen, self.batch)

    def compile(self, traced: jax.stages.Traced | None = None) -> jax.stages.Compiled:
        """Compile the step ahead of time.

        Args:
            traced: result of `trace`, for a caller that already has it.

        Raises:
            UserError: XLA has no such compiler option, or the option takes no such value.
        """
        lowered = (self.trace() if traced is None else traced).lower()
        try:
            return lowered.compile(compiler_options=dict(self.compiler_options) or None)
        except jax.errors.JaxRuntimeError as error:
            message = str(error)
            # XLA checks names and values of options; it names the option.
            if message.startswith("INVALID_ARGUMENT") and any(name in message for name in self.compiler_options):
                reason = message.removeprefix("INVALID_ARGUMENT: ").split("\n")[0].rstrip(".")
                raise UserError(f"config.compiler has an option that XLA does not take: {reason}.") from error
            raise


def make_program(config: TrainConfig, stage: Stage, mesh: Mesh) -> TrainProgram:
    """Shard a stage over a mesh and build its step.

    Raises:
        UserError: the mesh does not divide the batch or the model, or too much of the model would be replicated.
    """
    check_batch(stage.batch_size, config.optimizer.accumulation, mesh)
    optimizer = make_optimizer(config, stage.untracked_collections)
    abstract = abstract_state(stage, optimizer, mesh, config.precision.frozen)
    check_slow(config.optimizer.slow, abstract.state.trained)
    sharding.log_shardings(abstract.variables, abstract.shardings)
    sharding.check_sharded(abstract.variables, abstract.shardings)
    step = make_step(
        stage,
        optimizer,
        make_schedule(config.optimizer, config.steps),
        accumulation=config.optimizer.accumulation,
        seed=config.seed,
        layer_norms=config.layer_norms,
    )
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract.state)
    batch_sharding = sharding.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct((stage.batch_size, *row.shape), row.dtype, sharding=batch_sharding)
        for name, row in stage.batch_spec().items()
    }
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(state_shardings, None))
    return TrainProgram(mesh, optimizer, abstract, jitted, batch, _compiler_options(config, mesh))


def check_batch(batch_size: int, accumulation: int, mesh: Mesh) -> None:
    """Raise UserError unless the global batch divides over the mesh and into microbatches."""
    shards = sharding.num_batch_shards(mesh)
    if batch_size % (shards * accumulation):
        raise UserError(
            f"data.batch_size is {batch_size}, expected a multiple of {shards * accumulation} "
            f"(mesh.replica * mesh.fsdp = {shards} times optimizer.accumulation = {accumulation})."
        )


def _compiler_options(config: TrainConfig, mesh: Mesh) -> dict[str, str]:
    """Return the accelerator's options with those of `config.compiler` over them; an empty value drops an option."""
    accelerator = accelerators.for_device(mesh.devices.flat[0])
    options = {**(accelerator.compiler_options if accelerator else {}), **config.compiler_options}
    return {name: value for name, value in options.items() if value}

"""The step of a run as one program: what training runs is what `seed-jax plan` compiles."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import optax
from jax.sharding import Mesh

from seed_jax import accelerators, sharding
from seed_jax.train.optimizer import make_optimizer, make_schedule
from seed_jax.train.stage import Stage
from seed_jax.train.state import Layout, join, make_layout
from seed_jax.train.step import make_step


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A step, the shapes and shardings of what it takes, and how it is to be compiled.

    Attributes:
        step: `(state, frozen, batch) -> (state, metrics)`, jitted; the state is donated.
        batch: shapes and shardings of a global batch.
        options: for the compiler.
    """

    mesh: Mesh
    optimizer: optax.GradientTransformation
    layout: Layout
    step: Any
    batch: dict[str, jax.ShapeDtypeStruct]
    options: Mapping[str, str]

    def trace(self) -> jax.stages.Traced:
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(sharding.RULES):
            return self.step.trace(self.layout.state, self.layout.frozen, self.batch)

    def compile(self) -> jax.stages.Compiled:
        return self.trace().lower().compile(compiler_options=dict(self.options) or None)


def make(config: ml_collections.ConfigDict, stage: Stage, mesh: Mesh) -> Program:
    """Lay a stage out over a mesh, whose devices need not exist here.

    Raises:
        UserError: the mesh does not divide the model, or too much of it would lie whole on every device.
    """
    optimizer = make_optimizer(config.optimizer, config.steps, config.get("guard"))
    layout = make_layout(stage, optimizer, mesh, config.precision.frozen)
    variables = join(layout.state.trained, layout.frozen)
    sharding.log_shardings(variables, layout.boxed_shardings)
    sharding.check_cut(variables, layout.boxed_shardings)
    step = make_step(
        stage,
        optimizer,
        make_schedule(config.optimizer, config.steps),
        config.optimizer.accumulation,
        config.seed,
        layer_norms=config.get("layer_norms", False),
    )
    out = jax.tree.map(lambda leaf: leaf.sharding, layout.state)
    cut = sharding.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct((stage.batch_size, *row.shape), row.dtype, sharding=cut)
        for name, row in stage.row_spec.items()
    }
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(out, None))
    return Program(mesh, optimizer, layout, jitted, batch, compiler_options(config, mesh))


def compiler_options(config: ml_collections.ConfigDict, mesh: Mesh) -> dict[str, str]:
    """Return the accelerator's options with those of `config.compiler` over them."""
    known = accelerators.of_device(mesh.devices.flat[0])
    own = {name: str(value) for name, value in config.get("compiler", {}).items()}
    return {**(known.compiler if known else {}), **own}

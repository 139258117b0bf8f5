"""Training state: trained and frozen variables, and the optimizer state of the trained ones, sharded over a mesh."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from seed_jax import sharding
from seed_jax.precision import as_dtype
from seed_jax.train.stage import Stage
from seed_jax.typing import ParamPath, Tree


@flax.struct.dataclass
class TrainState:
    """What a step updates. Frozen variables are kept apart: they have neither gradients nor optimizer state."""

    step: Any  # int32 scalar, or its abstract value
    trained: Tree
    optimizer: optax.OptState


@flax.struct.dataclass
class AbstractState:
    """Shapes, dtypes and shardings of everything that a run keeps, for creation and for restoring.

    Attributes:
        shardings: of all variables, as the stage's `init_variables` expects them.
    """

    state: TrainState
    frozen: Tree
    shardings: Tree

    @property
    def variables(self) -> Tree:
        """Trained and frozen variables in one tree."""
        return merge(self.state.trained, self.frozen)


def partition(variables: Tree, is_trainable: Callable[[ParamPath], bool]) -> tuple[Tree, Tree]:
    """Split a tree into (trained, frozen) by path."""
    flat = flatten_dict(variables)
    trained = {path: leaf for path, leaf in flat.items() if is_trainable(path)}
    frozen = {path: leaf for path, leaf in flat.items() if path not in trained}
    return unflatten_dict(trained), unflatten_dict(frozen)


def merge(trained: Tree, frozen: Tree) -> Tree:
    """Undo `partition`."""
    return unflatten_dict({**flatten_dict(frozen), **flatten_dict(trained)})


def abstract_state(stage: Stage, tx: optax.GradientTransformation, mesh: Mesh, frozen_dtype: str) -> AbstractState:
    """Compute shapes, dtypes and shardings without allocating anything.

    Trained variables are float32; frozen ones have `frozen_dtype`.
    """
    boxed = stage.abstract_variables()
    shardings = sharding.tree_shardings(boxed, mesh)
    flat_shardings = flatten_dict(shardings)

    def described(path: ParamPath, leaf: Any) -> jax.ShapeDtypeStruct:
        dtype = jnp.float32 if stage.is_trainable(path) else as_dtype(frozen_dtype)
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=flat_shardings[path])

    flat = {path: described(path, leaf) for path, leaf in flatten_dict(sharding.unbox(boxed)).items()}
    trained, frozen = partition(unflatten_dict(flat), stage.is_trainable)
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding.replicated_sharding(mesh))
    return AbstractState(TrainState(step, trained, _abstract_optimizer(tx, trained, mesh)), frozen, shardings)


def _abstract_optimizer(tx: optax.GradientTransformation, trained: Tree, mesh: Mesh) -> optax.OptState:
    # Moments are sharded like their parameters; jit(tx.init) alone would leave that to the compiler.
    replicated = sharding.replicated_sharding(mesh)

    def is_masked(node: Any) -> bool:  # stands for parameters without moments
        return isinstance(node, optax.MaskedNode)

    def like_param(moment: Any, param: Any) -> Any:
        if is_masked(moment):
            return moment
        return jax.ShapeDtypeStruct(moment.shape, moment.dtype, sharding=param.sharding)

    return optax.tree_map_params(
        tx,
        like_param,
        jax.eval_shape(tx.init, trained),
        trained,
        transform_non_params=lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated),
        is_leaf=is_masked,
    )


def create(
    stage: Stage, tx: optax.GradientTransformation, abstract: AbstractState, key: jax.Array
) -> tuple[TrainState, Tree]:
    """Initialize (state, frozen variables) for step 0."""
    variables = stage.init_variables(key, abstract.shardings)
    trained, frozen = partition(variables, stage.is_trainable)
    trained = jax.tree.map(_cast_and_shard, trained, abstract.state.trained)
    frozen = jax.tree.map(_cast_and_shard, frozen, abstract.frozen)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract.state.optimizer)
    optimizer = jax.jit(tx.init, out_shardings=shardings)(trained)
    step = jax.device_put(jnp.zeros((), jnp.int32), abstract.state.step.sharding)
    return TrainState(step, trained, optimizer), frozen


def _cast_and_shard(leaf: jax.Array, target: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.device_put(leaf.astype(target.dtype), target.sharding)

"""Variables split into trained and frozen, and the optimizer state of the trained ones, laid out over a mesh."""

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

Tree = dict[str, Any]


@flax.struct.dataclass
class TrainState:
    """What a step changes. Frozen variables are kept apart: they have neither gradients nor optimizer state."""

    step: Any  # int32 scalar; in a layout its abstract value
    trained: Tree
    optimizer: optax.OptState


@flax.struct.dataclass
class Layout:
    """Abstract values with shardings of everything that is kept, for creation and for restoring."""

    state: TrainState
    frozen: Tree
    boxed_shardings: Tree


def split(variables: Tree, trainable) -> tuple[Tree, Tree]:
    """Part a tree into (trained, frozen) by path."""
    flat = flatten_dict(variables)
    trained = {path: leaf for path, leaf in flat.items() if trainable(path)}
    frozen = {path: leaf for path, leaf in flat.items() if path not in trained}
    return unflatten_dict(trained), unflatten_dict(frozen)


def join(trained: Tree, frozen: Tree) -> Tree:
    """Undo `split`."""
    return unflatten_dict({**flatten_dict(frozen), **flatten_dict(trained)})


def make_layout(stage: Stage, tx: optax.GradientTransformation, mesh: Mesh, frozen_dtype: str) -> Layout:
    """Work out shapes, dtypes and shardings without allocating anything.

    Trained variables and optimizer moments are float32; frozen ones `frozen_dtype`.
    """
    boxed = stage.abstract()
    shardings = sharding.tree_shardings(boxed, mesh)
    shapes = sharding.unbox(boxed)

    def described(path, leaf, cut):
        kept = jnp.float32 if stage.trainable(path) else as_dtype(frozen_dtype)
        return jax.ShapeDtypeStruct(leaf.shape, kept, sharding=cut)

    flat_cut = flatten_dict(shardings)
    flat = {path: described(path, leaf, flat_cut[path]) for path, leaf in flatten_dict(shapes).items()}
    trained, frozen = split(unflatten_dict(flat), stage.trainable)
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding.replicated(mesh))
    return Layout(TrainState(step, trained, _optimizer_layout(tx, trained, mesh)), frozen, shardings)


def _optimizer_layout(tx: optax.GradientTransformation, trained: Tree, mesh: Mesh) -> optax.OptState:
    # Moments are cut like their parameters; jit(tx.init) alone would leave that to the compiler.
    whole = sharding.replicated(mesh)

    def masked(node: Any) -> bool:  # stands for parameters that have no moments
        return isinstance(node, optax.MaskedNode)

    def cut_like(moment: Any, param: Any) -> Any:
        return moment if masked(moment) else jax.ShapeDtypeStruct(moment.shape, moment.dtype, sharding=param.sharding)

    return optax.tree_map_params(
        tx,
        cut_like,
        jax.eval_shape(tx.init, trained),
        trained,
        transform_non_params=lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
        is_leaf=masked,
    )


def create(stage: Stage, tx: optax.GradientTransformation, layout: Layout, key: jax.Array) -> tuple[TrainState, Tree]:
    """Make (state, frozen) for step 0."""
    variables = stage.init(key, layout.boxed_shardings)
    trained, frozen = split(variables, stage.trainable)
    trained = jax.tree.map(_settle, trained, layout.state.trained)
    frozen = jax.tree.map(_settle, frozen, layout.frozen)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, layout.state.optimizer)
    optimizer = jax.jit(tx.init, out_shardings=shardings)(trained)
    step = jax.device_put(jnp.zeros((), jnp.int32), layout.state.step.sharding)
    return TrainState(step, trained, optimizer), frozen


def _settle(leaf: jax.Array, target: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.device_put(leaf.astype(target.dtype), target.sharding)

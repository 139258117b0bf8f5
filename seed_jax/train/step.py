"""One optimizer step: exact sums over microbatches, one division at the end."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Key

from seed_jax.train.guard import GuardState
from seed_jax.train.stage import LossOutput, Stage
from seed_jax.train.state import TrainState, merge
from seed_jax.typing import ParamPath, Tree

Batch = dict[str, Array]


def microbatches(batch: Batch, count: int) -> Batch:
    """Reshape [G, ...] to [count, G / count, ...] so that every device keeps its own rows."""
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1), batch)


def gradients(
    stage: Stage, trained: Tree, frozen: Tree, batch: Batch, key: Key[Array, ""], accumulation: int
) -> tuple[Tree, LossOutput]:
    """Return d(mean loss)/d(trained) and the summed losses of the whole batch.

    Sums and weights are accumulated over microbatches before dividing, so that microbatches with unequal masks weigh
    as they would in one large batch.
    """

    def loss(trained, batch, key):
        output = stage.loss(merge(trained, frozen), batch, key)
        return output.total.sum, output

    grad = jax.value_and_grad(loss, has_aux=True)
    if accumulation == 1:
        (_, output), grads = grad(trained, batch, key)
    else:

        def microbatch_grads(index, rows):
            (_, output), grads = grad(trained, rows, jax.random.fold_in(key, index))
            return grads, output

        def body(carry, indexed):
            return jax.tree.map(jnp.add, carry, microbatch_grads(*indexed)), None

        split = microbatches(batch, accumulation)
        shapes = jax.eval_shape(microbatch_grads, 0, jax.tree.map(lambda x: x[0], split))
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (grads, output), _ = jax.lax.scan(body, zero, (jnp.arange(accumulation), split))
    weight = jnp.maximum(output.total.weight, 1.0)
    return jax.tree.map(lambda g: g / weight, grads), output


def make_step(
    stage: Stage,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    accumulation: int,
    seed: int,
    layer_norms: bool = False,
) -> Callable[..., Any]:
    """Return the pure function `(state, frozen, batch) -> (state, metrics)`; metrics are scalars on the device.

    Args:
        stage: what is trained.
        tx: optimizer.
        schedule: learning rate by step, for the metrics.
        accumulation: microbatches of a batch.
        seed: of the keys of dropout and noise.
        layer_norms: report norms of gradients and parameters layer by layer.
    """
    tx = optax.with_extra_args_support(tx)

    def step(state: TrainState, frozen: Tree, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        grads, output = gradients(stage, state.trained, frozen, batch, key, accumulation)
        updates, optimizer = tx.update(grads, state.optimizer, state.trained, loss=output.total.mean)
        trained: Any = optax.apply_updates(state.trained, updates)
        trained = stage.update_statistics(state.trained, trained, output.statistics)
        metrics: dict[str, Any] = {
            "loss": output.total.mean,
            **{name: value.mean for name, value in output.metrics.items()},
        }
        metrics |= {"tokens": output.total.weight, "grad_norm": optax.tree.norm(grads), "lr": schedule(state.step)}
        if isinstance(optimizer, GuardState):
            metrics["skipped_steps"] = optimizer.skipped
        if layer_norms:
            metrics |= norms_by_layer("grad_norm", grads) | norms_by_layer("param_norm", trained)
        return TrainState(state.step + 1, trained, optimizer), metrics

    return step


def norms_by_layer(name: str, tree: Tree) -> dict[str, Array]:
    """Return `<name>/<module>` -> L2 norm: of scanned layers one by one (`layers/07`), of other tensors by module."""
    squares: dict[str, list[Array]] = defaultdict(list)
    flat: dict[ParamPath, Any] = flatten_dict(tree)
    for path, leaf in flat.items():
        square = jnp.square(leaf.astype(jnp.float32))
        if "layers" not in path:
            squares["/".join(path[1:2] or path)].append(square.sum())
            continue
        sums = square.reshape(leaf.shape[0], -1).sum(-1)
        for layer in range(leaf.shape[0]):
            squares[f"layers/{layer:02d}"].append(sums[layer])
    return {f"{name}/{module}": jnp.sqrt(sum(parts)) for module, parts in sorted(squares.items())}

"""AdamW as the original trains with, learning-rate schedules, and moving averages of parameters."""

import difflib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from seed_jax.errors import UserError
from seed_jax.precision import as_dtype
from seed_jax.train.config import TrainConfig
from seed_jax.train.config.common import OptimizerConfig
from seed_jax.train.guard import guarded
from seed_jax.typing import Tree

EMA = "ema"  # collection of the moving averages
_NOT_DECAYED = ("bias", "scale", "q_bias", "v_bias", "temperature")


def decay_mask(params: Tree) -> Tree:
    """Return True for tensors under weight decay: everything but biases, norm scales and scalars."""
    return unflatten_dict({path: path[-1] not in _NOT_DECAYED for path in flatten_dict(params)})


def make_optimizer(config: TrainConfig, untracked: tuple[str, ...] = ()) -> optax.GradientTransformation:
    """Build clip -> AdamW, guarded against bad steps where the config asks for it (spec D.2).

    Args:
        config: the run's configuration.
        untracked: collections of variables that the stage updates itself; they have no moments.
    """
    options = config.optimizer
    tx = optax.adamw(
        make_schedule(options, config.steps),
        b1=options.b1,
        b2=options.b2,
        eps=options.eps,
        weight_decay=options.weight_decay,
        mask=decay_mask,
    )
    if options.slow:
        tx = optax.chain(tx, _scale_slow(options))
    if untracked:

        def is_tracked(variables: Any) -> Tree:
            return {name: name not in untracked for name in variables}

        tx = optax.masked(tx, is_tracked)
    if options.moments != "float32":
        tx = store_moments_as(tx, as_dtype(options.moments))
    if options.clip_norm:
        tx = optax.chain(optax.clip_by_global_norm(options.clip_norm), tx)
    skip_nonfinite = config.guard.nonfinite == "skip"
    if skip_nonfinite or config.guard.spike:
        tx = guarded(tx, skip_nonfinite=skip_nonfinite, spike=config.guard.spike)
    return tx


def _scale_slow(options: OptimizerConfig) -> optax.GradientTransformation:
    """Scale the updates of the parameters that `options.slow` names."""
    names = frozenset(options.slow)

    def scale(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
        is_slow = any(getattr(part, "key", None) in names for part in path)
        return options.slow_ratio * update if is_slow else update

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))


def check_slow(names: Sequence[str], trained: Tree) -> None:
    """Raise UserError unless each name of `optimizer.slow` is that of a module or parameter that is trained."""
    known = sorted({part for path in flatten_dict(trained) for part in path})
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"expected some of {', '.join(known)}."
            raise UserError(f"optimizer.slow has {name!r}, which is no part of the trained model: {hint}")


def store_moments_as(tx: optax.GradientTransformation, dtype: Any) -> optax.GradientTransformation:
    """Store an optimizer's moments in `dtype` between steps; updates are computed in float32 as before."""

    def cast(tree, source, target):
        return jax.tree.map(lambda x: x.astype(target) if x.ndim and x.dtype == source else x, tree)

    def init(params):
        return cast(tx.init(params), jnp.float32, dtype)

    def update(updates, state, params=None):
        updates, state = tx.update(updates, cast(state, dtype, jnp.float32), params)
        return updates, cast(state, jnp.float32, dtype)

    return optax.GradientTransformation(init, update)


def init_ema(params: Tree) -> Tree:
    """Return the moving averages before the first step: the parameters themselves."""
    return {**params, "updates": jnp.zeros((), jnp.float32)}


def update_ema(averages: Tree, params: Tree, decay: float) -> Tree:
    """Return the moving averages after a step that led to `params`.

    The decay is min(`decay`, (1 + n) / (10 + n)) after n updates, so that the initial values are soon forgotten.
    """
    updates = averages["updates"] + 1
    warmed_up = jnp.minimum(decay, (1 + updates) / (10 + updates))
    previous = {name: averages[name] for name in params}
    return {**jax.tree.map(lambda a, p: a + (1 - warmed_up) * (p - a), previous, params), "updates": updates}


def make_schedule(options: OptimizerConfig, steps: int) -> optax.Schedule:
    """Return the learning rate by step."""
    if options.schedule == "epochs":
        return epoch_cosine(
            options.peak_lr,
            epochs=options.epochs,
            epoch_steps=options.epoch_steps,
            warmup_steps=options.warmup_steps,
            warmup_start_ratio=options.warmup_start_ratio,
            min_ratio=options.min_lr_ratio,
        )
    return warmup_cosine(options.peak_lr, steps, options.warmup_ratio, options.min_lr_ratio)


def warmup_cosine(peak: float, steps: int, warmup_ratio: float, min_ratio: float) -> optax.Schedule:
    """Warm up linearly from 0, then decay along a cosine to `min_ratio * peak` at `steps` (spec D.2).

    The original's formula: peak * 0.5 * ((1 + m) + (1 - m) * cos(pi * progress)).
    """
    warmup = max(1, round(steps * warmup_ratio))

    def schedule(step):
        rising = peak * step / warmup
        progress = jnp.clip((step - warmup) / max(1, steps - warmup), 0.0, 1.0)
        falling = peak * 0.5 * ((1 + min_ratio) + (1 - min_ratio) * jnp.cos(jnp.pi * progress))
        return jnp.where(step < warmup, rising, falling)

    return schedule


def epoch_cosine(
    peak: float, *, epochs: int, epoch_steps: int, warmup_steps: int, warmup_start_ratio: float, min_ratio: float
) -> optax.Schedule:
    """Warm up and stay at `peak` in the first epoch; step down along a cosine in later epochs (spec A.9).

    Within an epoch after the first the rate is constant: min + (peak - min) * 0.5 * (1 + cos(pi * epoch / epochs)).
    """

    def schedule(step):
        first = peak * jnp.minimum(1.0, warmup_start_ratio + (1 - warmup_start_ratio) * step / max(1, warmup_steps))
        epoch = step // epoch_steps
        later = peak * (min_ratio + (1 - min_ratio) * 0.5 * (1 + jnp.cos(jnp.pi * epoch / epochs)))
        return jnp.where(epoch < 1, first, later)

    return schedule

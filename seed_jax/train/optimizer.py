"""AdamW as the original trains with: decay on matrices only, clipping by global norm."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from seed_jax.precision import as_dtype
from seed_jax.train.guard import guarded

_UNDECAYED = ("bias", "scale", "q_bias", "v_bias", "temperature")


def decay_mask(params: dict[str, Any]) -> dict[str, Any]:
    """Return True for the tensors that weight decay shrinks: everything but biases, norm scales and scalars."""
    return unflatten_dict({path: path[-1] not in _UNDECAYED for path in flatten_dict(params)})


def make_schedule(config: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
    """Return the learning rate of each step; `config.schedule` is "warmup_cosine" (default) or "epochs"."""
    kind = config.get("schedule", "warmup_cosine")
    if kind == "epochs":
        return epoch_cosine(
            config.peak_lr,
            epochs=config.epochs,
            epoch_steps=config.epoch_steps,
            warmup_steps=config.warmup_steps,
            warmup_start_ratio=config.warmup_start_ratio,
            min_ratio=config.min_lr_ratio,
        )
    return warmup_cosine(config.peak_lr, steps, config.warmup_ratio, config.min_lr_ratio)


def make_optimizer(
    config: ml_collections.ConfigDict, steps: int, guard: ml_collections.ConfigDict | None = None
) -> optax.GradientTransformation:
    """Build clip -> AdamW from `config.optimizer` (spec D.2); a `clip_norm` of 0 leaves clipping out.

    `config.following` names collections of variables that the stage keeps up to date, not the optimizer.

    Args:
        guard: `config.guard`: whether steps are left out, see `seed_jax.train.guard`.
    """
    tx = optax.adamw(
        make_schedule(config, steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )
    # What only follows the trained parameters, such as their moving average, needs no moments.
    if following := config.get("following", ()):
        tx = optax.masked(tx, lambda variables: {name: name not in following for name in variables})
    moments = config.get("moments", "float32")
    tx = tx if moments == "float32" else stored_as(tx, as_dtype(moments))
    tx = optax.chain(optax.clip_by_global_norm(config.clip_norm), tx) if config.clip_norm else tx
    skip, spike = (guard.nonfinite == "skip", guard.spike) if guard else (False, 0.0)
    return guarded(tx, skip_nonfinite=skip, spike=spike) if skip or spike else tx


def stored_as(tx: optax.GradientTransformation, dtype: Any) -> optax.GradientTransformation:
    """Keep an optimizer's moments in `dtype` between steps; it computes in float32 as before."""

    def cast(tree, source, target):
        change = lambda x: x.astype(target) if x.ndim and x.dtype == source else x  # noqa: E731
        return jax.tree.map(change, tree)

    def init(params):
        return cast(tx.init(params), jnp.float32, dtype)

    def update(grads, state, params=None):
        updates, state = tx.update(grads, cast(state, dtype, jnp.float32), params)
        return updates, cast(state, jnp.float32, dtype)

    return optax.GradientTransformation(init, update)


Tree = dict[str, Any]
COLLECTION = "ema"


def first_averages(params: Tree) -> Tree:
    """Return the averages before the first step: the parameters themselves."""
    return {**params, "updates": jnp.zeros((), jnp.float32)}


def next_averages(averages: Tree, params: Tree, decay: float) -> Tree:
    """Return the averages after a step that led to `params`.

    While there have been few updates the decay is lower, (1 + n) / (10 + n), so that the start is soon forgotten.
    """
    updates = averages["updates"] + 1
    kept = jnp.minimum(decay, (1 + updates) / (10 + updates))
    old = {name: averages[name] for name in params}
    return {**jax.tree.map(lambda a, p: a + (1 - kept) * (p - a), old, params), "updates": updates}


def warmup_cosine(peak: float, steps: int, warmup_ratio: float, min_ratio: float) -> optax.Schedule:
    """Rise linearly from 0, then fall along a cosine to `min_ratio * peak` at `steps` (spec D.2).

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
    """Warm up and then stay at `peak` in the first epoch; later epochs step down along a cosine (spec A.9).

    Within an epoch after the first the rate is constant: min + (peak - min) * 0.5 * (1 + cos(pi * epoch / epochs)).
    """

    def schedule(step):
        first = peak * jnp.minimum(1.0, warmup_start_ratio + (1 - warmup_start_ratio) * step / max(1, warmup_steps))
        epoch = step // epoch_steps
        later = peak * (min_ratio + (1 - min_ratio) * 0.5 * (1 + jnp.cos(jnp.pi * epoch / epochs)))
        return jnp.where(epoch < 1, first, later)

    return schedule

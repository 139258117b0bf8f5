"""Leave out a step whose loss or gradient is not finite, or whose loss jumps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

WARM_UP = 50  # steps before a jump is told from the way down
DECAY = 0.98  # of the running mean and spread of the loss
LEAST_SPREAD = 0.01  # nats; a loss that hardly moves must not make every step a jump


class GuardState(NamedTuple):
    """The guarded optimizer's state, the running loss, and how many steps were left out."""

    inner: optax.OptState
    mean: Float[Array, ""] | Any
    variance: Float[Array, ""] | Any
    seen: Int[Array, ""] | Any
    skipped: Int[Array, ""] | Any


def guarded(
    tx: optax.GradientTransformation, *, skip_nonfinite: bool, spike: float
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer so that a bad step changes neither parameters nor moments; its `update` takes `loss`.

    Args:
        skip_nonfinite: leave out steps whose loss or gradient norm is not finite.
        spike: leave out steps whose loss lies so many standard deviations over its running mean; 0 for none.
    """

    def init(params: Any) -> GuardState:
        zero, none = jnp.zeros(()), jnp.zeros((), jnp.int32)
        return GuardState(tx.init(params), zero, zero, none, none)

    def update(grads: Any, state: GuardState, params: Any, *, loss: Float[Array, ""]) -> tuple[Any, GuardState]:
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
        spread = jnp.maximum(jnp.sqrt(state.variance), LEAST_SPREAD)
        jumped = (state.seen >= WARM_UP) & (loss > state.mean + spike * spread) if spike else jnp.zeros((), bool)
        good = (finite if skip_nonfinite else jnp.ones((), bool)) & ~jumped
        choose = lambda new, old: jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)  # noqa: E731
        updates, inner = tx.update(grads, state.inner, params)
        updates = jax.tree.map(lambda u: jnp.where(good, u, jnp.zeros_like(u)), updates)
        # Of the first steps the mean is the plain one, lest it start from 0.
        keep = jnp.minimum(DECAY, state.seen / (state.seen + 1.0))
        mean = keep * state.mean + (1 - keep) * loss
        variance = keep * state.variance + (1 - keep) * jnp.square(loss - state.mean) * (state.seen > 0)
        measured = GuardState(choose(inner, state.inner), mean, variance, state.seen + 1, state.skipped)
        kept = GuardState(state.inner, state.mean, state.variance, state.seen, state.skipped + 1)
        return updates, choose(measured, kept)

    return optax.GradientTransformationExtraArgs(init, update)

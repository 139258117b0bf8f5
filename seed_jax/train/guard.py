"""Skip steps whose loss or gradient is not finite, or whose loss spikes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

WARMUP_STEPS = 50  # before these a spike cannot be told from the initial decrease
DECAY = 0.98  # of the running mean and variance of the loss
MIN_STD = 0.01  # nats; keeps small changes of a flat loss from counting as spikes


class GuardState(NamedTuple):
    """State of the guarded optimizer, running statistics of the loss, and the number of skipped steps."""

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
        tx: the optimizer.
        skip_nonfinite: skip steps whose loss or gradient norm is not finite.
        spike: skip steps whose loss exceeds its running mean by so many standard deviations; 0 for none.
    """

    def init(params: Any) -> GuardState:
        return GuardState(
            tx.init(params), jnp.zeros(()), jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        )

    def update(
        updates: Any, state: Any, params: Any = None, *, loss: Any = None, **extra: Any
    ) -> tuple[Any, GuardState]:
        del extra
        is_finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(updates))
        std = jnp.maximum(jnp.sqrt(state.variance), MIN_STD)
        is_spike = (state.seen >= WARMUP_STEPS) & (loss > state.mean + spike * std) if spike else jnp.zeros((), bool)
        is_good = (is_finite if skip_nonfinite else jnp.ones((), bool)) & ~is_spike

        def select(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: jnp.where(is_good, n, o), new, old)

        updates, inner = tx.update(updates, state.inner, params)
        updates = jax.tree.map(lambda u: jnp.where(is_good, u, jnp.zeros_like(u)), updates)
        # The mean of the first steps is the plain one, so that it does not start from 0.
        decay = jnp.minimum(DECAY, state.seen / (state.seen + 1.0))
        mean = decay * state.mean + (1 - decay) * loss
        variance = decay * state.variance + (1 - decay) * jnp.square(loss - state.mean) * (state.seen > 0)
        accepted = GuardState(select(inner, state.inner), mean, variance, state.seen + 1, state.skipped)
        rejected = GuardState(state.inner, state.mean, state.variance, state.seen, state.skipped + 1)
        return updates, select(accepted, rejected)

    return optax.GradientTransformationExtraArgs(init, update)

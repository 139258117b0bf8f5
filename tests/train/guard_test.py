"""Bad steps are left out whole, and bfloat16 moments do what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from seed_jax.train import guard
from seed_jax.train.guard import guarded
from seed_jax.train.optimizer import make_optimizer, store_moments_as
from tests.train.toy import toy_config

PARAMS = {"params": {"w": {"kernel": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)}}}


def run(tx, losses, gradients):
    """Return (parameters, state) after the steps; the update sees each loss."""
    tx = optax.with_extra_args_support(tx)
    params, state = PARAMS, tx.init(PARAMS)

    @jax.jit
    def step(params, state, loss, scale):
        grads = jax.tree.map(lambda p: scale * jnp.cos(p), params)
        updates, state = tx.update(grads, state, params, loss=loss)
        return optax.apply_updates(params, updates), state

    for loss, scale in zip(losses, gradients, strict=True):
        params, state = step(params, state, jnp.float32(loss), jnp.float32(scale))
    return params["params"]["w"]["kernel"], state


@pytest.mark.parametrize("bad", [(np.nan, 1.0), (np.inf, 1.0), (2.0, np.nan), (2.0, np.inf)])
def test_a_step_that_is_not_finite_changes_nothing(bad):
    tx = guarded(optax.adamw(0.1), skip_nonfinite=True, spike=0.0)
    with_bad, state = run(tx, [2.0, bad[0], 1.9], [1.0, bad[1], 1.0])
    without, clean = run(tx, [2.0, 1.9], [1.0, 1.0])
    np.testing.assert_array_equal(with_bad, without)
    assert int(state.skipped) == 1
    for one, other in zip(jax.tree.leaves(state.inner), jax.tree.leaves(clean.inner), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_jump_of_the_loss_is_left_out_once_the_loss_is_known(monkeypatch):
    monkeypatch.setattr(guard, "WARMUP_STEPS", 5)
    tx = guarded(optax.sgd(0.1), skip_nonfinite=False, spike=6.0)
    calm = [2.0, 2.1, 1.9, 2.0, 2.1, 2.0]
    with_jump, state = run(tx, [*calm, 9.0, 1.9], [1.0] * 8)
    without, _ = run(tx, [*calm, 1.9], [1.0] * 7)
    np.testing.assert_array_equal(with_jump, without)
    assert int(state.skipped) == 1
    _, early = run(tx, [2.0, 9.0, 2.0], [1.0] * 3)  # too early to tell
    assert int(early.skipped) == 0
    assert float(state.mean) == pytest.approx(np.mean([*calm, 1.9]), abs=0.05)


def test_without_a_guard_the_optimizer_is_as_it_was():
    def structure(**changes):
        return jax.tree.structure(make_optimizer(toy_config(**changes)).init(PARAMS))

    assert structure(**{"guard.nonfinite": "raise"}) == structure()
    assert structure(**{"guard.nonfinite": "skip"}) != structure()


def test_moments_in_16_bits_take_half_and_stay_near():
    losses, scales = [1.0] * 30, [1.0] * 30
    whole, _ = run(optax.adamw(0.01, b2=0.95), losses, scales)
    half, state = run(store_moments_as(optax.adamw(0.01, b2=0.95), jnp.bfloat16), losses, scales)
    assert {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim} == {jnp.dtype(jnp.bfloat16)}
    # 30 steps of 0.01; rounding each moment to 8 bits moves their quotient by less than 1 %.
    np.testing.assert_allclose(half, whole, atol=30 * 0.01 * 0.01)
    assert not np.array_equal(half, whole)

"""Each option for the codebook does what it says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seed_jax.errors import UserError
from seed_jax.models.tokenizer.vq import squared_distances
from seed_jax.train.stages.codebook import revival as health
from seed_jax.train.stages.codebook.revival import HealthOptions

KEY = jax.random.key(0)


def test_usage_by_literals():
    found = health.usage(jnp.array([[0, 0, 1], [1, 3, 3]]), 8)
    np.testing.assert_array_equal(found.count, [2, 2, 0, 2, 0, 0, 0, 0])
    assert float(found.used) == 3 / 8
    assert float(found.perplexity) == pytest.approx(3.0, rel=1e-6)  # three codes, evenly
    assert float(health.usage(jnp.full((2, 5), 4), 8).perplexity) == pytest.approx(1.0)


def step(options, state, codebook, vectors, codes):
    seen = health.observe(vectors, codes, len(codebook), options, KEY)
    return health.advance(options, state, codebook, seen)


def test_plain_form_leaves_the_codebook_to_the_optimizer():
    options, codebook = HealthOptions(), jax.random.normal(KEY, (4, 2))
    state = health.first_state(codebook, options)
    assert state.keys() == {"idle"}
    after, state = step(options, state, codebook, jnp.ones((1, 3, 2)), jnp.array([[0, 0, 2]]))
    np.testing.assert_array_equal(after, codebook)
    _, state = step(options, state, codebook, jnp.ones((1, 3, 2)), jnp.array([[0, 1, 1]]))
    np.testing.assert_array_equal(state["idle"], [0, 0, 1, 2])


def test_moving_averages_reach_the_means_of_the_members():
    options = HealthOptions(ema_decay=0.5)
    codebook = jnp.array([[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]])
    vectors = jnp.array([[[2.0, 0.0], [4.0, 0.0], [0.0, 5.0]]])
    codes = jnp.array([[0, 0, 1]])
    state = health.first_state(codebook, options)
    once, state = step(options, state, codebook, vectors, codes)
    # (1 + 6) / (1 + 2), halves cancelling; (1 + 5) / (1 + 1); a code without members keeps its place.
    np.testing.assert_allclose(once, [[7 / 3, 0], [0, 3], [9, 9]], rtol=1e-4)  # the smoothing of counts: 1e-5
    for _ in range(20):
        once, state = step(options, state, once, vectors, codes)
    np.testing.assert_allclose(once[:2], [[3, 0], [0, 5]], rtol=1e-3)


def test_whatever_the_optimizer_did_moving_averages_decide():
    options = HealthOptions(ema_decay=0.9)
    codebook = jnp.ones((2, 2))
    state = health.first_state(codebook, options)
    vectors, codes = jnp.ones((1, 2, 2)), jnp.array([[0, 1]])
    after, _ = step(options, state, 100 * codebook, vectors, codes)
    np.testing.assert_allclose(after, codebook, rtol=1e-4)


def test_dead_codes_move_onto_vectors_of_the_batch():
    options = HealthOptions(restart_after=2)
    codebook = jnp.zeros((3, 2))
    vectors, codes = jnp.array([[[1.0, 2.0], [3.0, 4.0]]]), jnp.array([[0, 0]])
    state = health.first_state(codebook, options)
    after, state = step(options, state, codebook, vectors, codes)
    np.testing.assert_array_equal(after, codebook)  # idle for one step only
    after, state = step(options, state, codebook, vectors, codes)
    np.testing.assert_array_equal(after[0], [0, 0])
    for row in np.asarray(after[1:]):
        assert row.tolist() in ([1, 2], [3, 4])
    np.testing.assert_array_equal(state["idle"], [0, 0, 0])


def test_a_restarted_code_begins_its_moving_average_anew():
    options = HealthOptions(restart_after=1, ema_decay=0.9)
    codebook = jnp.array([[0.0, 0.0], [50.0, 50.0]])
    vectors, codes = jnp.array([[[1.0, 2.0]]]), jnp.array([[0]])
    after, state = step(options, health.first_state(codebook, options), codebook, vectors, codes)
    np.testing.assert_array_equal(after[1], [1, 2])
    np.testing.assert_array_equal(state["ema_sum"][1], [1, 2])
    assert state["ema_count"][1] == 1


def test_kmeans_finds_separate_clusters():
    centres = np.array([[0, 0], [10, 0], [0, 10], [10, 10]], np.float32)
    noise = np.random.default_rng(0).normal(0, 0.1, (4, 50, 2)).astype(np.float32)
    vectors = jnp.asarray((centres[:, None] + noise).reshape(-1, 2))
    # More centres than clusters, so that every cluster has one however the first are drawn.
    found = jax.jit(health.kmeans, static_argnums=(1, 3))(vectors, 16, KEY, 10)
    distances = squared_distances(vectors[None], found)[0].min(-1)
    assert float(distances.mean()) < 0.02  # the clusters' own variance is 2 * 0.01
    assert found.shape == (16, 2)


def test_kmeans_needs_enough_vectors():
    with pytest.raises(UserError, match="found 3 for 4"):
        health.kmeans(jnp.zeros((3, 2)), 4, KEY)


@pytest.mark.parametrize("bad", [{"start": "random"}, {"ema_decay": 1.0}, {"restart_after": -1}])
def test_settings_are_checked(bad):
    with pytest.raises(UserError, match="codebook"):
        dataclasses.replace(HealthOptions(), **bad)

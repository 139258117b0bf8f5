"""Filters equal to transformers' in every token kept, draws equal in distribution and a matter of the row alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from seed_jax.inference.generation.sampling import SamplerParams, filter_logits, sample_tokens
from tests.support import golden


def settings(rows: int, **given) -> SamplerParams:
    wanted = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 0} | given
    kinds = {"top_k": jnp.int32, "seed": jnp.uint32}
    return SamplerParams(
        **{name: jnp.broadcast_to(jnp.asarray(v, kinds.get(name, jnp.float32)), (rows,)) for name, v in wanted.items()}
    )


def test_top_p_keeps_what_the_original_keeps():
    recorded = golden.tensors("llama_tiny/generation.safetensors")
    logits = jnp.asarray(recorded["top_p_input_logits"])
    kept = jnp.isfinite(filter_logits(logits, settings(len(logits), temperature=0.7, top_p=0.5)))
    np.testing.assert_array_equal(kept, recorded["top_p_keep"].astype(bool))


@pytest.mark.parametrize(
    "wanted",
    [
        {"temperature": 0.3},
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": 5000},
        {"top_p": 0.9},
        {"top_p": 0.001},
        {"min_p": 0.05},
        {"min_p": 1.0},
        {"temperature": 2.0, "top_k": 50, "top_p": 0.8, "min_p": 0.02},
    ],
)
def test_filters_equal_transformers(wanted):
    logits = 3 * np.random.default_rng(0).standard_normal((40, 1000)).astype(np.float32)
    logits[:, ::7] = -np.inf  # what the grammar forbids
    warpers = [TemperatureLogitsWarper(wanted.get("temperature", 1.0))]
    warpers += [TopKLogitsWarper(wanted["top_k"])] if "top_k" in wanted else []
    warpers += [TopPLogitsWarper(wanted["top_p"])] if "top_p" in wanted else []
    warpers += [MinPLogitsWarper(wanted["min_p"])] if "min_p" in wanted else []
    expected = LogitsProcessorList(warpers)(None, torch.tensor(logits)).numpy()
    found = np.asarray(jax.jit(filter_logits)(logits, settings(40, **wanted)))
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # one division


def test_ties_stay_together():
    logits = jnp.array([[0.0, 1.0, 1.0, 1.0, -2.0]])
    assert jnp.isfinite(filter_logits(logits, settings(1, top_k=2))).tolist() == [[False, True, True, True, False]]
    assert jnp.isfinite(filter_logits(logits, settings(1, top_p=0.1))).tolist() == [[False, True, True, True, False]]


def test_rows_of_one_batch_have_settings_of_their_own():
    logits = jnp.broadcast_to(jnp.arange(10.0)[None] / 5, (4, 10))
    mixed = settings(4, top_k=[0, 3, 0, 0], top_p=[1.0, 1.0, 0.5, 1.0], min_p=[0.0, 0.0, 0.0, 0.7])
    filters = jax.jit(filter_logits)
    kept = jnp.isfinite(filters(logits, mixed)).sum(-1).tolist()
    alone = [
        int(jnp.isfinite(filters(logits[:1], settings(1, **one))).sum())
        for one in ({}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.7})
    ]
    assert kept == alone
    assert kept[:2] == [10, 3]


def test_draws_follow_the_filtered_distribution():
    logits, count = jnp.array([[2.0, 1.0, 0.5, 0.0, -1.0, -jnp.inf]]), 20000
    wanted = {"temperature": 0.8, "top_k": 4, "top_p": 0.9}
    drawn = sample_tokens(
        jnp.broadcast_to(logits, (count, 6)), settings(count, **wanted, seed=np.arange(count)), jnp.full(count, 3)
    )
    found = np.bincount(drawn, minlength=6) / count
    expected = np.asarray(jax.nn.softmax(filter_logits(logits, settings(1, **wanted))))[0]
    # Three tokens are left; a share deviates by more than 4.5 sqrt(p(1 - p) / count) < 0.016 once in 100,000 tests.
    np.testing.assert_allclose(found, expected, atol=0.016)
    assert np.all(found[expected == 0] == 0)


def test_a_draw_depends_on_its_own_seed_and_step_only():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((6, 50)), jnp.float32)
    seeds = np.array([5, 6, 7, 5, 2**32 - 1, 0])
    drawn = jax.jit(sample_tokens)
    together = drawn(logits, settings(6, seed=seeds), jnp.full(6, 9))
    for row in range(6):
        assert drawn(logits[row : row + 1], settings(1, seed=seeds[row]), jnp.full(1, 9))[0] == together[row]
    flat = jnp.zeros((2, 1000))
    first = drawn(flat, settings(2, seed=[5, 5]), jnp.full(2, 0))
    assert first[0] == first[1]
    assert first[0] != drawn(flat, settings(2, seed=[5, 5]), jnp.full(2, 1))[0]


def test_temperature_zero_takes_the_likeliest_and_the_lowest_of_a_tie():
    logits = jnp.array([[0.0, 3.0, 3.0], [0.0, 3.0, 3.0]])
    drawn = sample_tokens(logits, settings(2, temperature=[0.0, 100.0], seed=[1, 3]), jnp.zeros(2, jnp.int32))
    assert drawn[0] == 1

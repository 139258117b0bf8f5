"""The chunked next-token loss against the plain formula, and its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seed_jax.losses.next_token import WeightedSum, next_token_loss
from seed_jax.precision import Precision

B, T, D, V, PADDED = 3, 13, 16, 150, 256


@pytest.fixture(scope="module")
def case() -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 5)
    return {
        "hidden": jax.random.normal(keys[0], (B, T, D)),
        "head_kernel": jax.random.normal(keys[1], (D, PADDED)),
        "targets": jax.random.randint(keys[2], (B, T), 0, V),
        "loss_mask": jax.random.bernoulli(keys[3], 0.6, (B, T)),
        "subset_mask": jax.random.bernoulli(keys[4], 0.4, (B, T)),
    }


def plain_loss(hidden, head_kernel, targets, loss_mask) -> jax.Array:
    logits = jnp.einsum("btd,dv->btv", hidden, head_kernel[:, :V], precision="highest")
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, :, None], axis=-1)[:, :, 0]
    return -(log_p * loss_mask).sum()


@pytest.mark.parametrize("chunk", [1, 4, 13, 64])
def test_value_and_gradients_equal_the_plain_formula(case, chunk):
    def chunked(hidden, kernel):
        inputs = {**case, "hidden": hidden, "head_kernel": kernel}
        return next_token_loss(**inputs, vocab_size=V, chunk_size=chunk).total.sum

    def reference(hidden, kernel):
        return plain_loss(hidden, kernel, case["targets"], case["loss_mask"])

    arguments = case["hidden"], case["head_kernel"]
    value, gradients = jax.jit(jax.value_and_grad(chunked, (0, 1)))(*arguments)
    expected, expected_gradients = jax.jit(jax.value_and_grad(reference, (0, 1)))(*arguments)
    np.testing.assert_allclose(value, expected, rtol=1e-6)  # float32 sums in another order
    for actual, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-6 * np.abs(wanted).max(), rtol=1e-5)
    assert not gradients[1][:, V:].any()


def test_subset_and_rest_sum_to_the_total(case):
    loss = next_token_loss(**case, vocab_size=V, chunk_size=5)
    for part, mask in ((loss.subset, case["subset_mask"]), (loss.rest, ~case["subset_mask"]), (loss.total, True)):
        weights = case["loss_mask"] & mask
        expected = plain_loss(case["hidden"], case["head_kernel"], case["targets"], weights)
        np.testing.assert_allclose(part.sum, expected, rtol=1e-5)  # float32 sums in another order
        assert part.weight == weights.sum()
    np.testing.assert_allclose((loss.subset + loss.rest).mean, loss.total.mean, rtol=1e-6)


def test_a_masked_target_may_have_probability_zero(case):
    # Column 200 is padding: probability 0, infinite loss.
    targets = jnp.where(case["loss_mask"], case["targets"], 200)
    loss = next_token_loss(**{**case, "targets": targets}, vocab_size=V)
    assert loss.total.sum == next_token_loss(**case, vocab_size=V).total.sum
    assert jnp.isinf(next_token_loss(**{**case, "targets": jnp.full((B, T), 200)}, vocab_size=V).total.sum)


def test_an_empty_mask_gives_zero_loss_and_gradient(case):
    empty = {**case, "loss_mask": jnp.zeros((B, T))}

    def mean(hidden):
        return next_token_loss(**{**empty, "hidden": hidden}, vocab_size=V).total.mean

    value, gradient = jax.value_and_grad(mean)(case["hidden"])
    assert value == 0
    assert not gradient.any()


def test_weights_may_be_fractional(case):
    weights = jnp.where(case["loss_mask"], 0.25, 0.0)
    quarter = next_token_loss(**{**case, "loss_mask": weights}, vocab_size=V).total
    whole = next_token_loss(**case, vocab_size=V).total
    np.testing.assert_allclose(quarter.sum * 4, whole.sum, rtol=1e-6)  # float32 sums in another order
    np.testing.assert_allclose(quarter.mean, whole.mean, rtol=1e-6)


@pytest.mark.optimized
def test_full_logits_are_never_materialized():
    batch, length, width, vocab_size = 2, 512, 32, 4096
    shapes = [(batch, length, width), (width, vocab_size), (batch, length)]
    hidden, kernel, flags = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    targets = jax.ShapeDtypeStruct((batch, length), jnp.int32)

    def memory(chunk_size):
        def loss(hidden, kernel, targets, mask):
            return next_token_loss(
                hidden, kernel, targets, mask, vocab_size=vocab_size, chunk_size=chunk_size
            ).total.sum

        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, kernel, targets, flags).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    logits = batch * length * vocab_size * 4
    assert memory(length) > logits  # the measurement includes logits that are materialized
    # The logits of a chunk of 32 are 1/16; a few such buffers and the kernel's gradient remain.
    assert memory(32) < logits / 4


def test_bfloat16_gradients_do_not_depend_on_the_chunk_size():
    keys = jax.random.split(jax.random.key(1), 3)
    hidden, kernel = jax.random.normal(keys[0], (2, 256, 32)), 0.3 * jax.random.normal(keys[1], (32, 128))
    targets = jax.random.randint(keys[2], (2, 256), 0, 128)

    def gradient(compute: str, chunk_size: int):
        def loss(kernel):
            options = {"vocab_size": 128, "chunk_size": chunk_size, "precision": Precision(compute=compute)}
            return next_token_loss(hidden, kernel, targets, jnp.ones((2, 256)), **options).total.sum

        return jax.jit(jax.grad(loss))(kernel)

    exact, whole, chunked = gradient("float32", 256), gradient("bfloat16", 256), gradient("bfloat16", 4)
    assert chunked.dtype == jnp.float32
    error, chunked_error = (jnp.linalg.norm(x - exact) / jnp.linalg.norm(exact) for x in (whole, chunked))
    # Accumulating 64 chunks in bfloat16 would more than double the error.
    assert chunked_error < 1.05 * error


def test_weighted_sums_add_up_exactly():
    parts = [WeightedSum(jnp.float32(6.0), jnp.float32(2.0)), WeightedSum(jnp.float32(1.0), jnp.float32(5.0))]
    assert (parts[0] + parts[1]).mean == 1.0
    total = WeightedSum.from_terms(jnp.array([2.0, jnp.inf]), jnp.array([3.0, 0.0]))
    assert (total.sum, total.weight) == (6.0, 3.0)

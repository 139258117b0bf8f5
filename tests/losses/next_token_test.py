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
        "split": jax.random.bernoulli(keys[4], 0.4, (B, T)),
    }


def plain(hidden, head_kernel, targets, loss_mask) -> jax.Array:
    logits = jnp.einsum("btd,dv->btv", hidden, head_kernel[:, :V], precision="highest")
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, :, None], axis=-1)[:, :, 0]
    return -(chosen * loss_mask).sum()


@pytest.mark.parametrize("chunk", [1, 4, 13, 64])
def test_value_and_gradients_equal_the_plain_formula(case, chunk):
    def chunked(hidden, kernel):
        parts = {**case, "hidden": hidden, "head_kernel": kernel}
        return next_token_loss(**parts, vocab_size=V, chunk=chunk).total.sum

    def reference(hidden, kernel):
        return plain(hidden, kernel, case["targets"], case["loss_mask"])

    arguments = case["hidden"], case["head_kernel"]
    value, gradients = jax.jit(jax.value_and_grad(chunked, (0, 1)))(*arguments)
    expected, expected_gradients = jax.jit(jax.value_and_grad(reference, (0, 1)))(*arguments)
    np.testing.assert_allclose(value, expected, rtol=1e-6)  # float32 sums in another order
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6 * np.abs(wanted).max(), rtol=1e-5)
    assert not gradients[1][:, V:].any()


def test_split_and_rest_make_the_total(case):
    loss = next_token_loss(**case, vocab_size=V, chunk=5)
    for part, mask in ((loss.split, case["split"]), (loss.rest, ~case["split"]), (loss.total, True)):
        weights = case["loss_mask"] & mask
        expected = plain(case["hidden"], case["head_kernel"], case["targets"], weights)
        np.testing.assert_allclose(part.sum, expected, rtol=1e-5)  # float32 sums in another order
        assert part.weight == weights.sum()
    whole = loss.split + loss.rest
    np.testing.assert_allclose(whole.mean, loss.total.mean, rtol=1e-6)


def test_a_target_that_does_not_count_may_be_impossible(case):
    # Column 200 is padding: probability 0, infinite loss.
    targets = jnp.where(case["loss_mask"], case["targets"], 200)
    loss = next_token_loss(**{**case, "targets": targets}, vocab_size=V)
    assert loss.total.sum == next_token_loss(**case, vocab_size=V).total.sum
    assert jnp.isinf(next_token_loss(**{**case, "targets": jnp.full((B, T), 200)}, vocab_size=V).total.sum)


def test_nothing_to_count_gives_zero_and_zero_gradient(case):
    nothing = {**case, "loss_mask": jnp.zeros((B, T))}

    def mean(hidden):
        return next_token_loss(**{**nothing, "hidden": hidden}, vocab_size=V).total.mean

    value, gradient = jax.value_and_grad(mean)(case["hidden"])
    assert value == 0
    assert not gradient.any()


def test_weights_may_be_fractions(case):
    weights = jnp.where(case["loss_mask"], 0.25, 0.0)
    quarter = next_token_loss(**{**case, "loss_mask": weights}, vocab_size=V).total
    whole = next_token_loss(**case, vocab_size=V).total
    np.testing.assert_allclose(quarter.sum * 4, whole.sum, rtol=1e-6)  # float32 sums in another order
    np.testing.assert_allclose(quarter.mean, whole.mean, rtol=1e-6)


def test_whole_logits_never_exist():
    rows, length, width, vocabulary = 2, 512, 32, 4096
    shapes = [(rows, length, width), (width, vocabulary), (rows, length)]
    hidden, kernel, flags = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    targets = jax.ShapeDtypeStruct((rows, length), jnp.int32)

    def memory(chunk):
        def loss(hidden, kernel, targets, mask):
            return next_token_loss(hidden, kernel, targets, mask, vocab_size=vocabulary, chunk=chunk).total.sum

        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, kernel, targets, flags).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    logits = rows * length * vocabulary * 4
    assert memory(length) > logits  # the measure sees them where they do exist
    # A chunk of 32 has logits of 1/16; a few such buffers and the kernel's gradient remain.
    assert memory(32) < logits / 4


def test_bfloat16_gradients_do_not_depend_on_the_chunk():
    keys = jax.random.split(jax.random.key(1), 3)
    hidden, kernel = jax.random.normal(keys[0], (2, 256, 32)), 0.3 * jax.random.normal(keys[1], (32, 128))
    targets = jax.random.randint(keys[2], (2, 256), 0, 128)

    def gradient(compute: str, chunk: int):
        def loss(kernel):
            options = {"vocab_size": 128, "chunk": chunk, "precision": Precision(compute=compute)}
            return next_token_loss(hidden, kernel, targets, jnp.ones((2, 256)), **options).total.sum

        return jax.jit(jax.grad(loss))(kernel)

    exact, whole, parts = gradient("float32", 256), gradient("bfloat16", 256), gradient("bfloat16", 4)
    assert parts.dtype == jnp.float32
    error, error_in_parts = (jnp.linalg.norm(x - exact) / jnp.linalg.norm(exact) for x in (whole, parts))
    # Adding up 64 chunks in bfloat16 would more than double the error.
    assert error_in_parts < 1.05 * error


def test_weighted_sums_add_up_exactly():
    parts = [WeightedSum(jnp.float32(6.0), jnp.float32(2.0)), WeightedSum(jnp.float32(1.0), jnp.float32(5.0))]
    assert (parts[0] + parts[1]).mean == 1.0
    found = WeightedSum.of(jnp.array([2.0, jnp.inf]), jnp.array([3.0, 0.0]))
    assert (found.sum, found.weight) == (6.0, 3.0)

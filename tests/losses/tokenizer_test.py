"""The tokenizer's losses by hand; their parity with the original is in tests/train."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seed_jax.errors import UserError
from seed_jax.losses.tokenizer import contrastive_loss, cosine_distance, reconstruction_loss, squared_distance


def unit_rows(seed, shape=(4, 8)):
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def test_contrastive_loss_by_hand():
    image, text, temperature = unit_rows(0), unit_rows(1), 0.5
    found = contrastive_loss(image, text, jnp.float32(temperature), label_smoothing=0.1)
    logits = np.asarray(image, np.float64) @ np.asarray(text, np.float64).T / temperature
    total = 0.0
    for scores in (logits, logits.T):
        log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        target = 0.9 * np.eye(4) + 0.1 / 4
        total -= (target * log_p).sum() / 2
    # float32 sums of 4 terms of size 1.
    np.testing.assert_allclose(found.total.sum, total, rtol=1e-6)
    assert float(found.total.weight) == 4


def test_right_partners_are_counted():
    image = jnp.eye(4, 8)
    found = contrastive_loss(image, image[jnp.array([0, 1, 3, 2])], jnp.float32(1.0))
    assert float(found.image_to_text_accuracy.mean) == 0.5
    assert float(found.text_to_image_accuracy.mean) == 0.5


def test_gradient_reaches_candidates_only_through_the_gather():
    image, text = unit_rows(0), unit_rows(1)

    def as_candidates(image, through_gather):
        """Subtract what pictures do as queries: what is left is what they do as candidates."""
        both = contrastive_loss(image, text, jnp.float32(1.0), through_gather=through_gather).total.sum
        asking = contrastive_loss(image, jax.lax.stop_gradient(text), jnp.float32(1.0)).total.sum
        return both - asking

    assert not np.any(jax.grad(as_candidates)(image, False))
    assert np.abs(jax.grad(as_candidates)(image, True)).max() > 1e-3


def test_cosine_distance_ignores_length_and_averages_queries():
    x = jnp.asarray([[[1.0, 0.0], [0.0, 2.0]]])
    target = jnp.asarray([[[3.0, 0.0], [5.0, 0.0]]])
    np.testing.assert_allclose(cosine_distance(x, target), [0.5], atol=1e-7)  # exact but for the square roots


def test_squared_distance_averages_everything():
    assert float(squared_distance(jnp.zeros((1, 2, 3)), jnp.full((1, 2, 3), 2.0))[0]) == 4.0


@pytest.mark.parametrize("kind", ["cosine", "mse"])
def test_reconstruction_gives_its_target_no_gradient(kind):
    x, target = unit_rows(0)[None], unit_rows(1)[None]
    gradient = jax.grad(lambda target: reconstruction_loss(kind, x, target).sum())(target)
    assert not np.any(gradient)


def test_unknown_reconstruction_is_refused():
    with pytest.raises(UserError, match=r"'l1'.*cosine, mse"):
        reconstruction_loss("l1", unit_rows(0)[None], unit_rows(1)[None])

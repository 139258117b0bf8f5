import jax
import jax.numpy as jnp
import numpy as np

from seed_jax.models.tokenizer import vq

CODEBOOK = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])


def test_nearest_code_its_vector_and_the_legacy_loss():
    x = jnp.array([[[0.9, 0.1], [0.0, 1.5]]])
    quantized = vq.quantize(x, CODEBOOK)
    assert quantized.codes.tolist() == [[1, 2]]
    assert quantized.codes.dtype == jnp.int32
    np.testing.assert_allclose(quantized.vectors, [[[1.0, 0.0], [0.0, 2.0]]], atol=1e-6)
    # 1.25 times the mean square difference: (0.01 + 0.01) / 2 and 0.25 / 2
    np.testing.assert_allclose(quantized.loss, [[0.0125, 0.15625]], rtol=1e-5)


def test_ties_go_to_the_lowest_index():
    assert vq.quantize(jnp.array([[[0.5, 0.0]]]), CODEBOOK).codes.tolist() == [[0]]
    assert vq.quantize(jnp.array([[[0.5, 0.0]]]), CODEBOOK[::-1]).codes.tolist() == [[1]]
    assert vq.quantize(jnp.ones((1, 1, 2)), jnp.ones((5, 2))).codes.tolist() == [[0]]


def test_squared_distances():
    np.testing.assert_allclose(vq.squared_distances(jnp.array([[[3.0, 2.0]]]), CODEBOOK), [[[13.0, 8.0, 9.0]]])


def test_distances_are_float32_for_16_bit_input():
    """In bfloat16 both codes would be 100 away and the first would win the tie."""
    codebook = jnp.array([[0.0, 10.01], [0.0, 10.0]])
    x = jnp.zeros((1, 1, 2), jnp.bfloat16)
    assert vq.quantize(x, codebook).codes.tolist() == [[1]]
    assert vq.squared_distances(x, codebook).dtype == jnp.float32


def test_gradient_passes_straight_through_and_not_to_the_codebook():
    x = jax.random.normal(jax.random.key(0), (2, 3, 2))
    weights = jax.random.normal(jax.random.key(1), (2, 3, 2))
    into_x, into_codebook = jax.grad(lambda x, e: (vq.quantize(x, e).vectors * weights).sum(), argnums=(0, 1))(
        x, CODEBOOK
    )
    np.testing.assert_array_equal(into_x, weights)
    assert not np.any(into_codebook)


def test_commitment_has_weight_one_and_the_codebook_a_quarter():
    x = jnp.array([[[0.9, 0.1], [1.3, -0.1]]])
    into_x, into_codebook = jax.grad(lambda x, e: vq.quantize(x, e).loss.sum(), argnums=(0, 1))(x, CODEBOOK)
    difference = np.asarray(x)[0] - np.array([1.0, 0.0])  # both are nearest to code 1; the mean is over 2 elements
    np.testing.assert_allclose(into_x[0], difference, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(into_codebook, [[0, 0], -0.25 * difference.sum(0), [0, 0]], rtol=1e-5, atol=1e-7)


def test_lookup():
    np.testing.assert_array_equal(vq.lookup(jnp.array([[2, 0]]), CODEBOOK), [[[0.0, 2.0], [0.0, 0.0]]])

"""The reader's noise: as large as it says, and only where it is asked for."""

import jax
import jax.numpy as jnp
import numpy as np

from seed_jax.data.world.labels import ATTRIBUTES, PATCH_ATTRIBUTES
from seed_jax.models.tokenizer.config import SeedTokenizerConfig
from seed_jax.quickstart.attribute_reader import AttributeReader

READER = AttributeReader(SeedTokenizerConfig.small(), ATTRIBUTES, PATCH_ATTRIBUTES)


def test_noise_is_a_share_of_each_vector():
    vectors = jax.random.normal(jax.random.key(1), (2, 3, 4096)) * jnp.array([1.0, 10.0, 100.0])[None, :, None]
    noisy = READER.apply({}, vectors, 0.5, method="_noisy", rngs={"noise": jax.random.key(0)})
    shares = np.square(noisy - vectors).mean(-1) / np.square(vectors).mean(-1)
    np.testing.assert_allclose(shares, 0.25, rtol=0.1)  # of 4096 draws


def test_without_the_stream_there_is_none():
    vectors = jnp.ones((2, 8))
    np.testing.assert_array_equal(READER.apply({}, vectors, 0.5, method="_noisy"), vectors)

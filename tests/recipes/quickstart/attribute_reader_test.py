"""The noise of the attribute reader: its size, and that it needs the RNG stream."""

import jax
import jax.numpy as jnp
import numpy as np

from seed_jax.data.world.labels import ATTRIBUTES, PATCH_ATTRIBUTES
from seed_jax.models.tokenizer.config import SeedTokenizerConfig
from seed_jax.recipes.quickstart.attribute_reader import AttributeReader

READER = AttributeReader(SeedTokenizerConfig.small(), ATTRIBUTES, PATCH_ATTRIBUTES)


def test_noise_is_relative_to_each_vector():
    vectors = jax.random.normal(jax.random.key(1), (2, 3, 4096)) * jnp.array([1.0, 10.0, 100.0])[None, :, None]
    noisy = READER.apply({}, vectors, 0.5, method="add_noise", rngs={"noise": jax.random.key(0)})
    ratios = np.square(noisy - vectors).mean(-1) / np.square(vectors).mean(-1)
    np.testing.assert_allclose(ratios, 0.25, rtol=0.1)  # of 4096 draws


def test_without_the_rng_stream_nothing_is_added():
    vectors = jnp.ones((2, 8))
    np.testing.assert_array_equal(READER.apply({}, vectors, 0.5, method="add_noise"), vectors)

"""The class labels of unCLIP against the recorded original, and their dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seed_jax.errors import UserError
from seed_jax.models.diffusion.unclip_conditioning import drop_labels
from tests.models.diffusion.cases import decoder, error, tensors


@pytest.mark.parametrize("level", [0, 1, 100, 999])
def test_class_labels_equal_the_originals(level):
    unclip, params = decoder()
    inputs = tensors("inputs")
    labels = unclip.class_labels(params, inputs["image_embeds"], inputs["noise"], jnp.array([level]))
    assert error(labels, tensors("pieces")[f"class_labels_noise_level_{level}"]) < 1e-5


def test_embeddings_of_another_width_are_refused():
    unclip, params = decoder()
    embeddings = jnp.zeros((1, unclip.config.embedding_width + 2))
    with pytest.raises(UserError, match=r"26 wide.*expects 24"):
        unclip.class_labels(params, embeddings, embeddings, jnp.zeros(1, jnp.int32))


def test_a_fraction_of_the_labels_is_dropped_whole():
    labels = jnp.ones((2000, 6))
    row_sums = np.asarray(drop_labels(labels, 0.1, jax.random.key(1))).sum(1)
    assert set(row_sums) == {0.0, 6.0}
    assert 0.07 < (row_sums == 0).mean() < 0.13  # four standard errors
    np.testing.assert_array_equal(drop_labels(labels, 0.0, jax.random.key(1)), labels)

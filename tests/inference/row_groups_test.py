"""A batch in groups of rows gives what the batch gives at once."""

import jax.numpy as jnp
import numpy as np
import pytest

from seed_jax.inference.image_tokenizer import in_groups


@pytest.mark.parametrize(("count", "size"), [(16, 4), (6, 3), (7, 1), (3, 3), (4, 4)])
def test_every_row_is_computed_in_groups_that_divide_the_batch(count, size):
    seen = []

    def function(params, batch):
        seen.append(batch.shape)
        return params * batch.sum(-1)

    batch = jnp.arange(count * 10.0).reshape(count, 2, 5)
    np.testing.assert_allclose(in_groups(function)(2.0, batch), 2 * batch.sum(-1))
    assert set(seen) == {(size, 2, 5)}

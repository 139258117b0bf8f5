"""What a query must say: which attribute it tells, and its class."""

import jax.numpy as jnp
import numpy as np

from seed_jax.data.world.labels import ATTRIBUTES, UNSAID
from seed_jax.quickstart import teacher_stage

COUNTS = [count for _, count in ATTRIBUTES]
FIRST = np.cumsum(COUNTS) - COUNTS
QUERIES = 2 * len(ATTRIBUTES)
FIRST_COLOUR, SECOND_COLOUR = [place for place, (kind, _) in enumerate(ATTRIBUTES) if kind == "colour"][:2]


def said(answers: np.ndarray) -> jnp.ndarray:
    """Return logits of queries that are sure of their answers (numbers among all classes)."""
    return jnp.asarray(20.0 * np.eye(sum(COUNTS))[answers][None], jnp.float32)


def test_a_query_must_name_its_attribute_too():
    labels = np.array([1, 2, 0, 3, 4, 1, 3, 2, 2, 8, 6, 3], np.int32)
    answers = np.tile(FIRST + labels, 2)
    errors, right = teacher_stage._scored_queries(said(answers), jnp.asarray(labels[None]))
    assert right[0] == 1.0
    assert errors[0] < 1e-5
    # Both things are of colour 3; said of the wrong one it is as wrong as any other colour.
    answers[SECOND_COLOUR] = FIRST[FIRST_COLOUR] + labels[FIRST_COLOUR]
    errors, right = teacher_stage._scored_queries(said(answers), jnp.asarray(labels[None]))
    np.testing.assert_allclose(right, 1 - 1 / QUERIES)
    np.testing.assert_allclose(errors, 20.0 / QUERIES, rtol=1e-4)


def test_what_a_picture_does_not_tell_is_not_asked():
    labels = np.full(len(ATTRIBUTES), UNSAID, np.int32)
    labels[1] = 4
    answers = np.full(QUERIES, FIRST[1] + 4)
    errors, right = teacher_stage._scored_queries(said(answers), jnp.asarray(labels[None]))
    assert right[0] == 1.0
    assert errors[0] < 1e-5

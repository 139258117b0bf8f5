"""Losses of the teacher: what a query has to predict, and that masked labels cost nothing."""

import jax.numpy as jnp
import numpy as np
import pytest

from seed_jax.data.shards.records import Record
from seed_jax.data.world.labels import ATTRIBUTES, PATCH_ATTRIBUTES, UNLABELED
from seed_jax.errors import UserError
from seed_jax.recipes.quickstart.teacher_stage import SceneReader, embedding_errors, patch_errors, query_errors

COUNTS = [classes for _, classes in ATTRIBUTES]
FIRST_CLASS = np.cumsum(COUNTS) - COUNTS
NUM_QUERIES = 2 * len(ATTRIBUTES)
FIRST_COLOR, SECOND_COLOR = [index for index, (name, _) in enumerate(ATTRIBUTES) if name == "colour"][:2]
LABELS = np.array([1, 2, 0, 3, 4, 1, 3, 2, 2, 8, 6, 3], np.int32)


def confident(classes, num_classes):
    """Return logits that are sure of the given classes."""
    return jnp.asarray(20.0 * np.eye(num_classes)[classes][None], jnp.float32)


def test_a_query_must_name_its_attribute():
    answers = np.tile(FIRST_CLASS + LABELS, 2)
    errors, accuracy = query_errors(confident(answers, sum(COUNTS)), jnp.asarray(LABELS[None]))
    assert accuracy[0] == 1.0
    assert errors[0] < 1e-5
    # Both objects have color 3: naming the color of the first object is as wrong as naming another color.
    answers[SECOND_COLOR] = FIRST_CLASS[FIRST_COLOR] + LABELS[FIRST_COLOR]
    errors, accuracy = query_errors(confident(answers, sum(COUNTS)), jnp.asarray(LABELS[None]))
    np.testing.assert_allclose(accuracy, 1 - 1 / NUM_QUERIES)
    np.testing.assert_allclose(errors, 20.0 / NUM_QUERIES, rtol=1e-4)


def test_masked_labels_cost_nothing():
    labels = np.full(len(ATTRIBUTES), UNLABELED, np.int32)
    labels[1] = 4
    queries = confident(np.full(NUM_QUERIES, FIRST_CLASS[1] + 4), sum(COUNTS))
    embedding = [confident(4 if index == 1 else 0, classes) for index, (_, classes) in enumerate(ATTRIBUTES)]
    for errors, accuracy in (
        query_errors(queries, jnp.asarray(labels[None])),
        embedding_errors(embedding, jnp.asarray(labels[None])),
    ):
        assert accuracy[0] == 1.0
        assert errors[0] < 1e-5


def test_patches_with_objects_weigh_as_much_as_all_patches():
    num_patches = 9
    labels = np.tile([classes - 1 for _, classes in PATCH_ATTRIBUTES], (num_patches, 1)).astype(np.int32)
    labels[4] = 0  # one patch shows the first object
    no_object = labels[0]
    logits = [confident(np.full(num_patches, last), last + 1) for last in no_object]
    errors, accuracy = patch_errors(logits, jnp.asarray(labels[None]))
    assert accuracy[0] == 0.0  # the only patch that counts is wrong
    np.testing.assert_allclose(errors, 20.0 * len(PATCH_ATTRIBUTES), rtol=1e-4)


def test_only_records_of_the_drawn_world_can_be_read():
    with pytest.raises(UserError, match="--source world"):
        SceneReader(48, 6)(Record("a", "folder", (b"", "a cat")), np.random.default_rng(0))

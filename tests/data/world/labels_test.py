"""Class labels: in range, and equal to the attributes of the scene."""

import numpy as np
import pytest

from seed_jax.data.world import COLORS, SHAPES, Scene, SceneObject, sample_scene
from seed_jax.data.world.labels import (
    ATTRIBUTES,
    PATCH_ATTRIBUTES,
    UNLABELED,
    mask_color_labels,
    patch_labels,
    scene_labels,
)
from seed_jax.data.world.tasks import scene_from_dict, scene_to_dict

SCENE = Scene(
    (SceneObject("small", "red", "star", 0.2, 0.5), SceneObject("large", "blue", "circle", 0.7, 0.5)), "row", "grey"
)


def test_labels_are_valid_classes():
    rng = np.random.default_rng(0)
    for _ in range(100):
        scene = sample_scene(rng)
        for labels, attributes in ((scene_labels(scene)[None], ATTRIBUTES), (patch_labels(scene, 6), PATCH_ATTRIBUTES)):
            num_classes = np.array([classes for _, classes in attributes])
            assert labels.dtype == np.int32
            assert ((labels >= 0) & (labels < num_classes)).all()


def test_labels_equal_the_attributes_of_the_scene():
    labels = scene_labels(SCENE)
    names = [name for name, _ in ATTRIBUTES]
    assert labels[names.index("count")] == 1
    assert labels[names.index("colour")] == list(COLORS).index("red")
    assert [labels[i] for i, name in enumerate(names) if name == "shape"] == [
        SHAPES.index("star"),
        SHAPES.index("circle"),
        len(SHAPES),  # there is no third object
    ]


@pytest.mark.parametrize(("row", "column", "index"), [(3, 1, 0), (3, 4, 1), (0, 0, 3), (5, 5, 3)])
def test_patch_labels_name_the_object_shown(row, column, index):
    labels = patch_labels(SCENE, 6).reshape(6, 6, -1)[row, column]
    assert labels[0] == index
    if index < 2:
        assert labels[1] == list(COLORS).index(SCENE.objects[index].color)


def test_scenes_survive_the_record_metadata():
    assert scene_from_dict(scene_to_dict(SCENE)) == SCENE


def test_masking_removes_color_labels_only():
    for labels, attributes in ((scene_labels(SCENE), ATTRIBUTES), (patch_labels(SCENE, 6), PATCH_ATTRIBUTES)):
        masked = mask_color_labels(labels, attributes)
        for column, (name, classes) in enumerate(attributes):
            before, after = labels[..., column], masked[..., column]
            is_color = name in ("colour", "background")
            no_object = classes - 1 if name == "colour" else -1
            hidden = is_color & (before != no_object)
            np.testing.assert_array_equal(after, np.where(hidden, UNLABELED, before))

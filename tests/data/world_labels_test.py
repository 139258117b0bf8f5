"""Class numbers of scenes: in range, and right where a scene says so."""

import numpy as np
import pytest

from seed_jax.data.world import COLOURS, SHAPES, Scene, Thing, draw_scene
from seed_jax.data.world.labels import ATTRIBUTES, PATCH_ATTRIBUTES, labels, patch_labels
from seed_jax.data.world.tasks import scene_of, truth

SCENE = Scene((Thing("small", "red", "star", 0.2, 0.5), Thing("large", "blue", "circle", 0.7, 0.5)), "row", "grey")


def test_labels_are_classes():
    rng = np.random.default_rng(0)
    for _ in range(100):
        scene = draw_scene(rng)
        for found, attributes in ((labels(scene)[None], ATTRIBUTES), (patch_labels(scene, 6), PATCH_ATTRIBUTES)):
            most = np.array([classes for _, classes in attributes])
            assert found.dtype == np.int32
            assert ((found >= 0) & (found < most)).all()


def test_labels_say_what_a_scene_is():
    found = dict(zip(range(len(ATTRIBUTES)), labels(SCENE), strict=True))
    kinds = [kind for kind, _ in ATTRIBUTES]
    assert found[kinds.index("count")] == 1
    assert found[kinds.index("colour")] == list(COLOURS).index("red")
    assert [found[i] for i, kind in enumerate(kinds) if kind == "shape"] == [
        SHAPES.index("star"),
        SHAPES.index("circle"),
        len(SHAPES),  # there is no third thing
    ]


@pytest.mark.parametrize(("row", "column", "place"), [(3, 1, 0), (3, 4, 1), (0, 0, 3), (5, 5, 3)])
def test_patches_show_what_is_there(row, column, place):
    found = patch_labels(SCENE, 6).reshape(6, 6, -1)[row, column]
    assert found[0] == place
    if place < 2:
        assert found[1] == list(COLOURS).index(SCENE.things[place].colour)


def test_truth_comes_back():
    assert scene_of(truth(SCENE)) == SCENE

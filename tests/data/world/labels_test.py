"""Class numbers of scenes: in range, and right where a scene says so."""

import numpy as np
import pytest

from seed_jax.data.world import COLOURS, SHAPES, Scene, Thing, draw_scene, is_held, paint
from seed_jax.data.world.labels import ATTRIBUTES, PATCH_ATTRIBUTES, UNSAID, labels, patch_labels, without_colours
from seed_jax.data.world.recolouring import recolour
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


def test_colours_are_left_out_and_nothing_else():
    whole, patches = labels(SCENE), patch_labels(SCENE, 6)
    for found, attributes in ((whole, ATTRIBUTES), (patches, PATCH_ATTRIBUTES)):
        hidden = without_colours(found, attributes)
        for place, (kind, classes) in enumerate(attributes):
            before, after = found[..., place], hidden[..., place]
            there = (before != classes - 1) if kind == "colour" else np.full_like(before, kind == "background", bool)
            np.testing.assert_array_equal(after, np.where(there, UNSAID, before))


def test_other_colours_keep_shapes_and_hide_no_held_combination():
    rng = np.random.default_rng(0)
    for _ in range(30):
        scene = draw_scene(rng)
        clean = paint(scene, 48)
        turned = recolour(clean, scene, rng)
        assert turned is not None
        # Pixels of one colour stay of one colour, and things stand out as before.
        ground, thing = clean[0, 0], tuple(int(48 * place) for place in (scene.things[0].y, scene.things[0].x))
        same = (clean == ground).all(-1)
        np.testing.assert_array_equal(turned[same], np.broadcast_to(turned[0, 0], turned[same].shape))
        apart = [np.linalg.norm(each[thing].astype(float) - each[0, 0]) for each in (clean, turned)]
        assert apart[1] > 0.5 * apart[0]
        for each in scene.things:
            colour = turned[int(48 * each.y), int(48 * each.x)].astype(float)
            nearest = min(COLOURS, key=lambda name: np.linalg.norm(colour - COLOURS[name]))
            near = np.linalg.norm(colour - COLOURS[nearest]) < 70
            assert not (near and is_held(each.size, nearest, each.shape))

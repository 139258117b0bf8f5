"""The programs that judge images and texts are right about true ones, and notice every kind of mistake."""

import numpy as np
import pytest

from seed_jax.data.world import BACKGROUNDS, COLORS, SHAPES, SIZES, Scene, SceneObject, render, sample_scene, wording
from seed_jax.recipes.quickstart.read_captions import aggregate, compare, is_correct_answer, read_caption
from seed_jax.recipes.quickstart.read_pixels import read_image


def scenes(count):
    rng = np.random.default_rng(5)
    return [sample_scene(rng, held_out=index % 3 == 0) for index in range(count)]


def accuracies(expected, size):
    actual = [read_image(render(scene, size, np.random.default_rng(index))) for index, scene in enumerate(expected)]
    return aggregate([compare(*pair) for pair in zip(actual, expected, strict=True)])


def test_rendered_scenes_are_recognized_despite_noise():
    measured = accuracies(scenes(400), 64)
    # The measurements of a model rely on this: a lower value would be counted against the model.
    assert min(measured.values()) >= 0.99


@pytest.mark.parametrize("size", [48, 96])
def test_other_image_sizes_are_recognized(size):
    assert accuracies(scenes(40), size)["whole"] >= 0.95


def test_every_combination_is_told_from_every_other():
    for background in BACKGROUNDS:
        for shape in SHAPES:
            for size in SIZES:
                for color in list(COLORS)[:: 3 if background != "white" else 1]:
                    scene = Scene((SceneObject(size, color, shape),), "in the middle", background)
                    assert read_image(render(scene, 64)).content == scene.content


def test_every_caption_is_parsed_as_its_scene():
    for scene in scenes(150):
        for caption in wording.captions(scene):
            assert compare(read_caption(caption), scene).all_correct, caption


OBJECT_ATTRIBUTES = {"size", "colour", "shape"}


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("a small red circle left of a large blue star on a grey background", set()),
        ("a small red circle right of a large blue star on a grey background", OBJECT_ATTRIBUTES),
        ("on a grey background, right of a small red circle, a large blue star", set()),
        ("left of a large blue star, a small red circle on a grey background", set()),
        ("left of a small red circle, a large blue star on a grey background", OBJECT_ATTRIBUTES),
        ("a small red circle above a large blue star on a grey background", {"arrangement"}),
        ("a small red circle left of a large blue cross on a grey background", {"shape"}),
        ("a small red circle on the left on a grey background", {"arrangement", "count", *OBJECT_ATTRIBUTES}),
        ("a small red circle left of a large blue star", {"background"}),
        ("something else", {"arrangement", "count", "background", *OBJECT_ATTRIBUTES}),
    ],
)
def test_mistakes_are_counted_by_attribute(caption, wrong):
    objects = (SceneObject("small", "red", "circle"), SceneObject("large", "blue", "star"))
    counts = compare(read_caption(caption), Scene(objects, "row", "grey")).counts
    assert {name for name, (correct, expected) in counts.items() if correct < expected} == wrong


def test_images_without_a_scene_are_wrong_but_no_errors():
    scene = Scene((SceneObject("small", "red", "circle"),), "in the middle", "grey")
    rng = np.random.default_rng(0)
    for image in (np.full((64, 64, 3), 128, np.uint8), rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)):
        assert not compare(read_image(image), scene).all_correct


def test_a_correct_answer_names_one_value():
    assert is_correct_answer("colour", "It is red.", "red")
    assert not is_correct_answer("colour", "red or blue", "red")
    assert is_correct_answer("relation", "left", "left")
    assert not is_correct_answer("count", "two", "three")

"""The measuring program is right about true drawings, and notices what is wrong."""

import numpy as np
import pytest

from seed_jax.data.world import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, Thing, draw_scene, paint, wording
from seed_jax.quickstart.read_captions import compare, read_caption, right_answer, together
from seed_jax.quickstart.read_pixels import read


def scenes(count):
    rng = np.random.default_rng(5)
    return [draw_scene(rng, held=number % 3 == 0) for number in range(count)]


def test_true_drawings_are_read_with_all_their_noise():
    meant = scenes(400)
    found = [read(paint(scene, 64, np.random.default_rng(number))) for number, scene in enumerate(meant)]
    measured = together([compare(*pair) for pair in zip(found, meant, strict=True)])
    assert measured["whole"] >= 0.99  # the least that the measurements of a model may rely on
    assert min(measured.values()) >= 0.99


@pytest.mark.parametrize("side", [48, 96])
def test_other_sides_are_read_too(side):
    meant = scenes(40)
    found = [read(paint(scene, side, np.random.default_rng(number))) for number, scene in enumerate(meant)]
    assert together([compare(*pair) for pair in zip(found, meant, strict=True)])["whole"] >= 0.95


def test_every_look_is_told_from_every_other():
    for ground in BACKGROUNDS:
        for shape in SHAPES:
            for size in SIZES:
                for colour in list(COLOURS)[:: 3 if ground != "white" else 1]:
                    scene = Scene((Thing(size, colour, shape),), "in the middle", ground)
                    assert read(paint(scene, 64)).meaning == scene.meaning


def test_every_caption_is_read_as_its_scene():
    for scene in scenes(150):
        for caption in wording.captions(scene):
            assert compare(read_caption(caption), scene).whole, caption


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("a small red circle left of a large blue star on a grey background", set()),
        ("a small red circle right of a large blue star on a grey background", {"size", "colour", "shape"}),
        ("on a grey background, right of a small red circle, a large blue star", set()),
        ("left of a large blue star, a small red circle on a grey background", set()),
        ("left of a small red circle, a large blue star on a grey background", {"size", "colour", "shape"}),
        ("a small red circle above a large blue star on a grey background", {"arrangement"}),
        ("a small red circle left of a large blue cross on a grey background", {"shape"}),
        ("a small red circle on the left on a grey background", {"arrangement", "count", "size", "colour", "shape"}),
        ("a small red circle left of a large blue star", {"background"}),
        ("nothing of the kind", {"arrangement", "count", "size", "colour", "shape", "background"}),
    ],
)
def test_what_is_wrong_is_counted(caption, wrong):
    meant = Scene((Thing("small", "red", "circle"), Thing("large", "blue", "star")), "row", "grey")
    counts = compare(read_caption(caption), meant).counts
    assert {name for name, (right, of) in counts.items() if right < of} == wrong


def test_pictures_that_show_nothing_are_wrong_not_errors():
    meant = Scene((Thing("small", "red", "circle"),), "in the middle", "grey")
    rng = np.random.default_rng(0)
    for picture in (np.full((64, 64, 3), 128, np.uint8), rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)):
        assert not compare(read(picture), meant).whole


def test_answers_name_one_thing():
    assert right_answer("colour", "It is red.", "red")
    assert not right_answer("colour", "red or blue", "red")
    assert right_answer("relation", "left", "left")
    assert not right_answer("count", "two", "three")

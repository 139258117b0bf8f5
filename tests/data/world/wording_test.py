"""Wording: a change names what it changes, a referring expression is unique, questions have one answer."""

import numpy as np

from seed_jax.data.world import Scene, SceneObject, sample_scene, wording


def scenes(count):
    rng = np.random.default_rng(0)
    return [sample_scene(rng) for _ in range(count)]


def test_a_change_alters_one_attribute_and_names_its_new_value():
    rng = np.random.default_rng(1)
    for scene in scenes(100):
        change = wording.sample_change(scene, rng)
        altered = [
            (name, after.attributes[name])
            for before, after in zip(scene.objects, change.scene.objects, strict=True)
            for name in before.attributes
            if before.attributes[name] != after.attributes[name]
        ]
        if scene.background != change.scene.background:
            altered.append(("background", change.scene.background))
        assert len(altered) == 1
        kind, value = altered[0]
        assert change.kind == kind
        assert value in change.instruction
        assert value in change.difference


def test_referring_expressions_are_unique():
    for scene in scenes(200):
        names = [wording.referring_expression(scene, obj) for obj in scene.objects]
        assert len(set(names)) == len(names)


def test_captions_and_questions_of_a_scene():
    scene = Scene((SceneObject("small", "red", "circle"), SceneObject("large", "blue", "star")), "row", "grey")
    assert wording.captions(scene) == (
        "a small red circle left of a large blue star on a grey background",
        "on a grey background, a small red circle left of a large blue star",
        "right of a small red circle, a large blue star on a grey background",
        "on a grey background, right of a small red circle, a large blue star",
    )
    answers = {question.text: question.answer for question in wording.questions(scene)}
    assert answers == {
        "How many things are there?": "two",
        "What colour is the background?": "grey",
        "What colour is the circle?": "red",
        "What shape is the red thing?": "circle",
        "How large is the circle?": "small",
        "What colour is the star?": "blue",
        "What shape is the blue thing?": "star",
        "How large is the star?": "large",
        "Where is the circle, seen from the star?": "left",
        "Where is the star, seen from the circle?": "right",
    }

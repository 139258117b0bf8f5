"""Scenes: which combinations are held out, and what a sampled scene may contain."""

from itertools import product

import numpy as np
import pytest

from seed_jax.data.world import COLORS, HELD_OUT, SHAPES, SIZES, is_held_out, sample_scene
from seed_jax.data.world.scenes import OBJECT_ATTRIBUTES


def test_one_combination_in_eight_is_held_out_but_every_pair_of_attributes_is_trained():
    assert len(HELD_OUT) == len(SIZES) * len(SHAPES) == 18
    trained = [combination for combination in product(SIZES, COLORS, SHAPES) if not is_held_out(*combination)]
    assert len(trained) + len(HELD_OUT) == 144
    for pair in ((0, 1), (0, 2), (1, 2)):
        shown = {tuple(combination[i] for i in pair) for combination in trained}
        assert len(shown) == np.prod([(len(SIZES), len(COLORS), len(SHAPES))[i] for i in pair])


@pytest.mark.parametrize("held_out", [False, True])
def test_sampled_scenes_are_valid_and_held_out_as_requested(held_out):
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, held_out) for _ in range(300)]
    assert all(scene.is_valid and scene.held_out == held_out for scene in scenes)
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3}


@pytest.mark.parametrize(("name", "value"), [("size", "large"), ("colour", "cyan"), ("shape", "cross")])
def test_changing_an_attribute_keeps_the_others_and_the_position(name, value):
    obj = sample_scene(np.random.default_rng(1)).objects[0]
    changed = obj.with_attribute(name, value)
    assert changed.attributes == obj.attributes | {name: value}
    assert (changed.x, changed.y) == (obj.x, obj.y)
    assert value in OBJECT_ATTRIBUTES[name]

"""The drawn world: always the same, never a held combination where it does not belong, ordinary shards."""

import json
from itertools import product

import numpy as np
import pytest

from seed_jax import images
from seed_jax.data.build import build
from seed_jax.data.build.settings import Settings
from seed_jax.data.shards.shards import open_shards
from seed_jax.data.sources import open_source
from seed_jax.data.templates import make
from seed_jax.data.templates.record_fields import fields_of
from seed_jax.data.text.vocabulary import train_small
from seed_jax.data.world import (
    COLOURS,
    HELD,
    SHAPES,
    SIZES,
    TASKS,
    Scene,
    draw_scene,
    is_held,
    make_sample,
    paint,
    wording,
)
from seed_jax.errors import UserError


def scenes(count, held=False):
    rng = np.random.default_rng(0)
    return [draw_scene(rng, held) for _ in range(count)]


def described(folder, **recipe):
    path = folder / f"{recipe['task']}.world.json"
    path.write_text(json.dumps({"count": 6, "seed": 3, **recipe}))
    return path


def built(folder, **recipe):
    out = folder / f"{recipe['task']}_shards"
    build.build(open_source("world", [described(folder, **recipe)]), out, settings=Settings(progress=False))
    return open_shards(out)


def test_one_look_in_eight_is_held_and_no_pair_of_attributes_is():
    assert len(HELD) == len(SIZES) * len(SHAPES)
    for pair in ((0, 1), (0, 2), (1, 2)):
        shown = {tuple(look[i] for i in pair) for look in product(SIZES, COLOURS, SHAPES) if not is_held(*look)}
        assert len(shown) == np.prod([(len(SIZES), len(COLOURS), len(SHAPES))[i] for i in pair])


@pytest.mark.parametrize("held", [False, True])
def test_scenes_fit_and_hold_what_they_should(held):
    found = scenes(300, held)
    assert all(scene.fits and scene.held == held for scene in found)
    assert {len(scene.things) for scene in found} == {1, 2, 3}


@pytest.mark.parametrize("task", TASKS)
def test_samples_are_the_same_always_and_differ_by_number_and_seed(task):
    assert make_sample(task, 1, 5) == make_sample(task, 1, 5)
    several = [make_sample(task, 1, 5), make_sample(task, 1, 6), make_sample(task, 2, 5), make_sample(task, 1, 5, True)]
    assert len({repr(each) for each in several}) == 4
    for number in range(50):
        shown = [item for item in make_sample(task, 0, number).items if isinstance(item, Scene)]
        assert shown
        assert not any(scene.held for scene in shown)
        assert all(item.held for item in make_sample(task, 0, number, True).items if isinstance(item, Scene))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("things", [1, 2, 3])
def test_the_number_of_things_may_be_given(task, things):
    for number in range(20):
        first = next(item for item in make_sample(task, 0, number, things=things).items if isinstance(item, Scene))
        assert len(first.things) == things


def test_a_change_changes_one_thing_that_its_words_name():
    rng = np.random.default_rng(1)
    for scene in scenes(100):
        change = wording.change(scene, rng)
        differing = [
            (name, getattr(after, name))
            for before, after in zip(scene.things, change.scene.things, strict=True)
            for name in ("size", "colour", "shape")
            if getattr(before, name) != getattr(after, name)
        ]
        if scene.background != change.scene.background:
            differing.append(("background", change.scene.background))
        assert len(differing) == 1
        kind, value = differing[0]
        assert change.kind == kind
        assert value in change.instruction
        assert value in change.difference


def test_a_name_means_one_thing():
    for scene in scenes(200):
        names = [wording.referred(scene, thing) for thing in scene.things]
        assert len(set(names)) == len(names)


def test_pictures_of_one_scene_differ_by_texture_and_noise_alone():
    (scene,) = scenes(1)
    plain = paint(scene, 64).astype(int)
    first, second = (paint(scene, 64, np.random.default_rng(seed)).astype(int) for seed in (0, 1))
    assert (first != second).any()
    assert np.abs(first - plain).mean() < 15  # of 255: what is shown stays
    np.testing.assert_array_equal(first, paint(scene, 64, np.random.default_rng(0)))


def test_shards_are_the_same_bytes_and_their_pictures_the_scenes(tmp_path):
    (tmp_path / "again").mkdir()
    shards, again = built(tmp_path, task="captions"), built(tmp_path / "again", task="captions")
    assert shards.hashes == again.hashes
    sample = make_sample("captions", 3, 4)
    picture, caption = shards[4].items
    assert caption == sample.items[1]
    pixels = paint(sample.items[0], 64, np.random.default_rng([3, 4]))
    np.testing.assert_array_equal(np.asarray(images.load(picture)), pixels)


class OneCode:
    """Stands for an image tokenizer."""

    fingerprint, preprocessing, batch_size = "one", {}, 4

    def prepare(self, image):
        return np.asarray(image)

    def encode(self, pictures):
        return np.ones((len(pictures), 32), np.int32)


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("captions", "pretrain.image_text_pair"),
        ("captions", "sft.qa"),
        ("questions", "sft.conversation"),
        ("edits", "sft.edit"),
        ("edits", "pretrain.edit"),
        ("differences", "sft.difference"),
        ("stories", "pretrain.interleaved"),
        ("stories", "sft.interleaved"),
    ],
)
def test_records_suit_their_templates(tmp_path, kind, task):
    train_small(["a small red circle left of a large blue star"] * 20, tmp_path / "words", vocab_size=300, num_codes=4)
    from seed_jax.data.text.vocabulary import Vocabulary

    vocabulary = Vocabulary.load(tmp_path / "words")
    source = open_source("world", [described(tmp_path, task=kind)])
    build.build(source, tmp_path / "out", encoder=OneCode(), settings=Settings(progress=False))
    for record in open_shards(tmp_path / "out"):
        rng = np.random.default_rng(0)
        params = {"reverse_ratio": -1.0} if (kind, task) == ("captions", "sft.qa") else {}
        sample = make(task, params, vocabulary)(fields_of(record, task, rng), rng)
        assert sample.kept, sample.reason
        assert sample.loss_mask.any()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "does not describe drawn samples"),
        ('{"task": "songs", "count": 1}', "task is 'songs', expected one of captions"),
        ('{"task": "captions", "count": 0}', "count is 0, expected a whole number of at least 1"),
        ('{"task": "captions", "count": 1, "things": 4}', "things is 4, expected 1, 2 or 3"),
        ('{"task": "captions", "count": 1, "things": true}', "things is True, expected 1, 2 or 3"),
        ('{"task": "captions", "count": 1, "colour": "red"}', "expected JSON with task, count, seed"),
    ],
)
def test_bad_descriptions_are_one_sentence(tmp_path, text, words):
    (tmp_path / "bad.world.json").write_text(text)
    with pytest.raises(UserError, match=words):
        open_source("world", [tmp_path])

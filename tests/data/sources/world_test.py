"""The synthetic world as a source: reproducible shards, records that fit their templates, clear errors."""

import json

import numpy as np
import pytest

from seed_jax import images
from seed_jax.data.build import build
from seed_jax.data.build.options import BuildOptions
from seed_jax.data.shards.shards import open_shards
from seed_jax.data.sources import open_source
from seed_jax.data.templates import make_template
from seed_jax.data.templates.record_fields import fields_of
from seed_jax.data.text.vocabulary import Vocabulary, train_small
from seed_jax.data.world import make_sample, render
from seed_jax.errors import UserError


def write_description(folder, **keys):
    path = folder / f"{keys['task']}.world.json"
    path.write_text(json.dumps({"count": 6, "seed": 3, **keys}))
    return path


def build_shards(folder, **keys):
    out = folder / f"{keys['task']}_shards"
    build.build(open_source("world", [write_description(folder, **keys)]), out, options=BuildOptions(progress=False))
    return open_shards(out)


def test_shards_are_reproducible_and_their_images_show_the_scenes(tmp_path):
    (tmp_path / "again").mkdir()
    shards, again = build_shards(tmp_path, task="captions"), build_shards(tmp_path / "again", task="captions")
    assert shards.hashes == again.hashes
    sample = make_sample("captions", 3, 4)
    image, caption = shards[4].items
    assert caption == sample.items[1]
    pixels = render(sample.items[0], 64, np.random.default_rng([3, 4]))
    np.testing.assert_array_equal(np.asarray(images.load(image)), pixels)


@pytest.mark.parametrize(("held_out", "num_objects"), [(True, None), (False, 3)])
def test_descriptions_choose_combinations_and_number_of_objects(tmp_path, held_out, num_objects):
    shards = build_shards(tmp_path, task="captions", held_out=held_out, num_objects=num_objects)
    expected = [make_sample("captions", 3, index, held_out, num_objects).items[1] for index in range(6)]
    assert [record.items[1] for record in shards] == expected


class ConstantEncoder:
    """An image tokenizer whose codes are all 1."""

    fingerprint, precision, preprocessing, batch_size = "one", "float32", {}, 4

    def prepare(self, image):
        return np.asarray(image)

    def encode(self, images):
        return np.ones((len(images), 32), np.int32)


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
def test_records_fit_their_templates(tmp_path, kind, task):
    train_small(
        ["a small red circle left of a large blue star"] * 20, tmp_path / "vocabulary", vocab_size=300, num_codes=4
    )
    vocabulary = Vocabulary.load(tmp_path / "vocabulary")
    source = open_source("world", [write_description(tmp_path, task=kind)])
    build.build(source, tmp_path / "out", encoder=ConstantEncoder(), options=BuildOptions(progress=False))
    for record in open_shards(tmp_path / "out"):
        rng = np.random.default_rng(0)
        params = {"reverse_ratio": -1.0} if (kind, task) == ("captions", "sft.qa") else {}
        sample = make_template(task, params, vocabulary)(fields_of(record, task, rng), rng)
        assert sample.kept, sample.reason
        assert sample.loss_mask.any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a description.*expected JSON"),
        ('{"task": "songs", "count": 1}', "task is 'songs'.*captions"),
        ('{"task": "captions", "count": 0}', "count is 0.*from 1 to"),
        ('{"task": "captions", "count": 1, "num_objects": 4}', "num_objects is 4.*1, 2 or 3"),
        ('{"task": "captions", "count": 1, "num_objects": true}', "num_objects is True.*1, 2 or 3"),
        ('{"task": "captions", "count": 1, "colour": "red"}', "expected JSON with task, count, seed"),
    ],
)
def test_bad_descriptions_are_refused(tmp_path, text, message):
    (tmp_path / "bad.world.json").write_text(text)
    with pytest.raises(UserError, match=message):
        open_source("world", [tmp_path])

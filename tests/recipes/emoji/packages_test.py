"""Reading of the npm packages: groups and names, and one sentence for whatever is wrong with them."""

import json
import shutil

import pytest
from PIL import Image

from configs import emoji as config_file
from seed_jax.errors import UserError
from seed_jax.recipes.emoji import recipe
from seed_jax.recipes.emoji.packages import FLAGS, SKIN_TONES, SYMBOLS, read_packages
from tests.support.emoji import STUDIOS, write_packages


@pytest.fixture
def packages(tmp_path):
    return write_packages(tmp_path / "E")


def test_symbols_flags_and_skin_tones_are_apart(packages):
    emoji = read_packages(packages, STUDIOS)
    assert [len(emoji.of_group(group)) for group in (SYMBOLS, FLAGS, SKIN_TONES)] == [7, 1, 2]
    apple = emoji.symbols[0]
    assert (apple.name, apple.category, apple.captions[0]) == ("red apple", "Food & Drink", "red apple")
    assert [symbol.name for symbol in emoji.of_group(SKIN_TONES)] == [
        "waving hand sign, light skin tone",
        "raised hand, light skin tone",
    ]
    assert emoji.category_of["blue book"] == "Objects"
    assert Image.open(emoji.image("twitter", apple)).size == (64, 64)


def test_symbols_that_a_studio_has_not_drawn_are_left_out(packages):
    for folder in packages.iterdir():
        entries = json.loads((folder / "emoji.json").read_text())
        entries[0]["has_img_google"] = False
        (folder / "emoji.json").write_text(json.dumps(entries))
    assert "red apple" not in read_packages(packages, STUDIOS).category_of
    assert "red apple" in read_packages(packages, ("apple", "twitter")).category_of


def _without_names(folder):
    (folder / "emoji.json").unlink()


def _without_studio(folder):
    shutil.rmtree(folder)


def _without_image(folder):
    (folder / "img/apple/64/1f000.png").unlink()


def _of_another_size(folder):
    Image.new("RGB", (72, 72)).save(folder / "img/apple/64/1f001.png")


def _of_another_format(folder):
    (folder / "img/apple/64/1f001.png").write_bytes(b"<svg/>")


def _of_another_shape(folder):
    (folder / "emoji.json").write_text('{"apple": 1}')


def _cut_off(folder):
    (folder / "emoji.json").write_text((folder / "emoji.json").read_text()[:-9])


def _edited(change):
    def damage(folder):
        entries = json.loads((folder / "emoji.json").read_text())
        (folder / "emoji.json").write_text(json.dumps(change(entries)))

    return damage


DAMAGES = {
    "no names": (_without_names, "no emoji.json with their names"),
    "no studio": (_without_studio, "no images of apple.*google.*npm pack emoji-datasource-apple"),
    "no image": (_without_image, "1f000.png is missing"),
    "another size": (_of_another_size, "1f001.png has 72 x 72 pixels, expected 64 x 64"),
    "no PNG": (_of_another_format, "1f001.png is no image"),
    "no list": (_of_another_shape, "not a list"),
    "no JSON": (_cut_off, "not JSON"),
    "too few": (_edited(lambda entries: entries[:4]), "too few images.*4 symbols.*at least 5"),
    "no name": (_edited(lambda entries: [{**entries[0], "name": None}, *entries[1:]]), "Entry 0.*name"),
    "outside": (_edited(lambda entries: [{**entries[0], "image": "../../x.png"}]), "Entry 0.*x.png"),
}


@pytest.mark.parametrize(("damage", "key_words"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_packages_are_one_sentence_before_anything_is_written(packages, tmp_path, damage, key_words):
    damage(packages / "emoji-datasource-apple")
    config = config_file.get_config("tiny")
    config.packages.directory = str(packages)
    with pytest.raises(UserError, match=key_words) as raised:
        recipe.run(config, tmp_path / "W")
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 2
    assert not (tmp_path / "W").exists()


@pytest.mark.parametrize(
    ("changes", "key_words"),
    [
        ({"directory": ""}, "packages.directory is empty"),
        ({"directory": "/nowhere"}, "/nowhere is not a folder"),
        ({"test": "google"}, "packages.test is google, which is trained on"),
        ({"train": ()}, "packages.train is empty"),
        ({"test": ""}, "packages.test has an empty name"),
        ({"copies": -1, "words": 0}, "packages.words.*packages.copies|packages.copies.*packages.words"),
    ],
)
def test_bad_options_are_one_sentence(packages, tmp_path, changes, key_words):
    config = config_file.get_config("tiny")
    config.packages.update({"directory": str(packages), **changes})
    with pytest.raises(UserError, match=key_words):
        recipe.run(config, tmp_path / "W")


def test_unknown_variant_and_bucket(packages):
    with pytest.raises(UserError, match="no variant 'huge'"):
        config_file.get_config("huge")
    config = config_file.get_config("tiny")
    config.packages.directory = str(packages)
    with pytest.raises(UserError, match="local directory"):
        recipe.run(config, "gs://bucket/run")

"""The recipe with every step once, on 40 images that the test draws."""

import json

import numpy as np
import pytest

from configs import emoji as config_file
from seed_jax.checkpoint import model_dir
from seed_jax.data.shards.shards import open_shards
from seed_jax.recipes.emoji import recipe
from seed_jax.recipes.emoji.config import EmojiConfig
from seed_jax.recipes.emoji.corpus import TEST, TRAIN, Corpus, build_images
from seed_jax.recipes.emoji.packages import SYMBOLS, read_packages
from seed_jax.train.config.schema import parse
from tests.support import meshes
from tests.support.emoji import STUDIOS, write_packages


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with meshes.on_devices(1):
        yield


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    return write_packages(tmp_path_factory.mktemp("emoji") / "E")


def configured(packages):
    config = config_file.get_config("tiny")
    config.packages.directory = str(packages)
    return config


def test_no_image_of_the_test_studio_is_trained_on(packages, tmp_path):
    config, corpus = parse(EmojiConfig, configured(packages)), Corpus(tmp_path)
    emoji = read_packages(packages, STUDIOS)
    build_images(corpus, emoji, config)
    train, test = (open_shards(corpus.shards(part, SYMBOLS)) for part in (TRAIN, TEST))
    assert (len(train), len(test)) == (21, 7)
    studios = [{shards[index].meta["studio"] for index in range(len(shards))} for shards in (train, test)]
    assert studios == [{"apple", "facebook", "google"}, {"twitter"}]
    # The image, its name and, in training only, a shorter one.
    assert (train[0].items[1:], test[0].items[1:]) == (("red apple", "short 0"), ("red apple",))


@pytest.fixture(scope="module")
def finished(packages, tmp_path_factory):
    config, workdir = configured(packages), tmp_path_factory.mktemp("emoji") / "W"
    recipe.run(config, workdir)
    return config, workdir


@pytest.mark.slow
def test_every_step_runs_and_is_measured(finished):
    _, workdir = finished
    numbers = json.loads((workdir / "results.json").read_text())
    assert all(0 <= value <= 1 for value in numbers.values())
    for group in ("symbols", "flags", "skin_tones"):
        for name in (
            *(f"names_{group}_exact", f"names_{group}_category", f"drawings_{group}_right_of_all"),
            *(f"drawings_{group}_right_of_100", f"judge_{group}_right_of_all"),
            *(f"restyled_{group}_{name}" for name in ("style", "style_unchanged", "style_wanted", "right_of_all")),
            *(f"{source}_{group}_{way}_recall@{k}" for source in ("retrieval", "code_retrieval")
              for way in ("i2t", "t2i") for k in (1, 5, 10)),
        ):  # fmt: skip
            assert name in numbers
    for kind in ("seed", "kmeans", "vqvae"):
        for name in (f"agreement_symbols_{kind}_auc", f"probe_{kind}_new_symbols"):
            assert name in numbers
    kinds = {
        name: model_dir.read_config(workdir / name)[1]["kind"] for name in ("vision", "codebook", "decoder", "sft")
    }
    assert kinds == {"vision": "clip_vision", "codebook": "seed_tokenizer", "decoder": "unclip", "sft": "llama"}


@pytest.mark.slow
def test_the_page_shows_the_test_studio_and_loads_nothing(finished):
    page = (finished[1] / "report.html").read_text()
    assert "Emoji of Twitter, never seen in training" in page
    assert page.count("data:image/webp;base64,") >= 2 * 7  # drawings beside the studio's own images
    assert "://" not in page
    assert "red apple" in page


@pytest.mark.slow
def test_finished_steps_are_not_repeated(finished):
    config, workdir = finished
    files = [path for path in workdir.rglob("*") if path.is_file() and path.name != "recipe.json"]
    before = {path: path.stat().st_mtime_ns for path in files}
    recipe.run(config, workdir)
    assert {path: path.stat().st_mtime_ns for path in files} == before


@pytest.mark.slow
def test_the_exported_tower_gives_the_embeddings_it_was_trained_for(finished):
    """Its class token's head is applied to the normalized image, as stage II and the decoder do."""
    tower = model_dir.load(finished[1] / "vision").params
    trained = model_dir.load(finished[1] / "image_text").variables
    np.testing.assert_array_equal(np.asarray(tower["head"]["kernel"]), np.asarray(trained["tower"]["head"]["kernel"]))
    np.testing.assert_array_equal(np.asarray(tower["pos_embed"]), np.asarray(trained["params"]["vit"]["pos_embed"]))

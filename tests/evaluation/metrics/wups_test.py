"""WUPS by literals on a small database in WordNet's format."""

import pytest

from seed_jax.errors import UserError
from seed_jax.evaluation.metrics.wups import STOP_WORDS, WordNet, content_words, wups
from tests.evaluation import datasets


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory):
    return WordNet.load(datasets.wordnet(tmp_path_factory.mktemp("wordnet")))


def test_words_are_reduced_to_lemmas_without_stop_words(wordnet):
    assert content_words("The dogs ran to two CATS.", wordnet) == ["dog", "run", "two", "cat"]
    assert content_words("kine", wordnet) == ["kine"]  # its lemma is not in the database
    assert len(STOP_WORDS) == 156


def test_similarity_is_by_the_depth_of_the_common_hypernym(wordnet):
    assert wordnet.similarity("dog", "cat") == pytest.approx(4 / 7)
    assert wordnet.similarity("dog", "canine") == pytest.approx(2 * 3 / (1 + 2 * 3))
    assert wordnet.similarity("dog", "entity") == pytest.approx(2 / (3 + 2))
    assert wordnet.similarity("table", "table") == 1
    assert wordnet.similarity("table", "dog") == 0
    # Verbs without a common hypernym meet in a root above them all, of depth 0: run is two steps below it.
    assert wordnet.similarity("run", "sleep") == pytest.approx(2 / (2 + 1 + 2))
    assert wordnet.similarity("run", "dog") == pytest.approx(2 / (2 + 4 + 2))  # as in NLTK, also across parts of speech


def test_the_score_is_the_weaker_direction(wordnet):
    assert wups("a dog", "the dogs", "CW", wordnet) == 1
    # The dog matches the dog; of two true words one has no match and is skipped, the other is found.
    assert wups("dog", "dog cat", "CW", wordnet) == pytest.approx(4 / 7)
    assert wups("dog", "cat", "CW", wordnet, alpha=0.9) == pytest.approx(0.1 * 4 / 7)
    assert wups("", "cat", "CW", wordnet) == 0
    assert wups("it is", "cat", "CW", wordnet) == 0


def test_numbers_and_yes_or_no_want_equal_answers(wordnet):
    assert wups("two", "two", "DC", wordnet) == 1
    assert wups("dogs", "cat", "DB", wordnet) == 0


def test_directories_without_the_database_are_named(tmp_path):
    with pytest.raises(UserError, match=r"index\.noun.*--wordnet"):
        WordNet.load(tmp_path)
    datasets.wordnet(tmp_path / "damaged")
    (tmp_path / "damaged/data.verb").write_text("00000100 03 v 01\n")
    with pytest.raises(UserError, match=r"data\.verb"):
        WordNet.load(tmp_path / "damaged")

"""VQA accuracy equal to the official script's."""

import pytest

from seed_jax.evaluation.metrics.vqa_accuracy import gqa_match, normalize_answer, short_answer, vqa_accuracy
from tests.support import golden


def test_every_case_of_the_official_script():
    recorded = golden.load_json("evaluation/vqa_accuracy.json")
    accuracies = [vqa_accuracy(case["prediction"], case["answers"]) for case in recorded["cases"]]
    assert len(accuracies) == 300
    assert [round(100 * accuracy, 6) for accuracy in accuracies] == [case["accuracy"] for case in recorded["cases"]]
    assert round(100 * sum(accuracies) / len(accuracies), 6) == recorded["overall"]


def test_every_normalization_of_the_official_script():
    cases = golden.load_json("evaluation/vqa_accuracy.json")["normalised"]
    assert len(cases) == 79
    assert [normalize_answer(case["text"]) for case in cases] == [case["processed"] for case in cases]


@pytest.mark.parametrize(("equal", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_accuracy_by_number_of_equal_answers(equal, accuracy):
    assert vqa_accuracy("dog", ["dog"] * equal + ["cat"] * (10 - equal)) == pytest.approx(accuracy)


def test_equal_answers_are_compared_without_normalization():
    assert vqa_accuracy("Yes.", ["yes"] * 10) == 0.0
    assert vqa_accuracy(short_answer("Yes."), ["yes"] * 10) == 1.0
    assert vqa_accuracy("Yes.", ["yes"] * 9 + ["no"]) == 1.0


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("somebody'd", "somebodyd"),  # an oddity of the official table
        ("wed've", "we'd've"),
        ("Im", "im"),  # the table's keys with capitals never match
        (". " * 40 + "x", ". . . . . . . . x"),  # 32 periods are removed at most
        ("1,000-2", "10002"),  # a comma between digits removes every mark
    ],
)
def test_oddities_of_the_official_rules(text, normal):
    assert normalize_answer(text) == normal


def test_gqa_ignores_case_and_punctuation_only():
    assert gqa_match(" Yes. ", "yes")
    assert not gqa_match("the dog", "dog")
    assert not gqa_match("two", "2")

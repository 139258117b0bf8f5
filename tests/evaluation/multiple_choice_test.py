"""Letters in generated answers, and rotations that must all be right."""

import pytest

from seed_jax.evaluation.task import Sample
from seed_jax.evaluation.tasks import find_task
from seed_jax.evaluation.tasks.multiple_choice import find_letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b.", "B"),
        ("(C)", "C"),
        ("The answer is D.", "D"),
        ("A", "A"),
        ("A large dog is there", "B"),
        ("it shows a dog", "B"),
        ("B or C", ""),
        ("E", ""),
        ("nothing", ""),
        ("", ""),
    ],
)
def test_letters_are_found(answer, letter):
    assert find_letter(answer, ["cat", "dog", "horse", "owl"]) == letter


def test_a_question_is_right_if_all_its_rotations_are():
    samples = [
        Sample(index, (), "?", ("x", "y"), {"answer": answer})
        for index, answer in (("7", "A"), ("1000007", "B"), ("8", "B"))
    ]
    predictions = [{"prediction": letter} for letter in ("A", "A", "B")]
    scores = find_task("mmbench_letters").score(samples, predictions)
    assert scores.metrics["circular_accuracy"] == 50
    assert scores.metrics["accuracy"] == pytest.approx(200 / 3)

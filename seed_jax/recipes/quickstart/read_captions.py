"""Parse the scene that a caption describes, and compare scenes attribute by attribute."""

import dataclasses
import re
from collections.abc import Sequence

from seed_jax.data.world import BACKGROUNDS, Scene, SceneObject
from seed_jax.data.world.scenes import COLUMN, OBJECT_ATTRIBUTES, POSITIONS, ROW
from seed_jax.data.world.wording import NUMBER_WORDS

_ALTERNATIVES = {name: "|".join(values) for name, values in OBJECT_ATTRIBUTES.items()}
_OBJECT = re.compile(r"\b({size})\s+({colour})\s+({shape})\b".format(**_ALTERNATIVES))
_BACKGROUND = re.compile(rf"\b({'|'.join(BACKGROUNDS)})\s+background\b")
_POSITION = re.compile("|".join(POSITIONS))
# Reading order stated in a caption -> arrangement.
_ORDERS = {"from left to right": ROW, "from top to bottom": COLUMN}
# Relation between two objects -> arrangement, and whether the first object is the left or upper one when the relation
# stands between them.
_RELATIONS = {"left of": (ROW, True), "right of": (ROW, False), "above": (COLUMN, True), "below": (COLUMN, False)}
ATTRIBUTES = (*OBJECT_ATTRIBUTES, "arrangement", "background", "count")
# Kind of question -> words that may answer it.
_ANSWERS = {
    **OBJECT_ATTRIBUTES,
    "count": NUMBER_WORDS,
    "relation": ("left", "right", "above", "below"),
    "background": tuple(BACKGROUNDS),
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How many attributes of the expected scene are correct.

    Attributes:
        counts: name of `ATTRIBUTES` -> (correct, expected).
    """

    counts: dict[str, tuple[int, int]]

    @property
    def all_correct(self) -> bool:
        return all(correct == expected for correct, expected in self.counts.values())


def read_caption(text: str) -> Scene:
    """Parse a caption; what it does not state is missing from the scene or ""."""
    text = " ".join(text.lower().split())
    matches = list(_OBJECT.finditer(text))
    objects = [SceneObject(match[1], match[2], match[3]) for match in matches]
    background = _BACKGROUND.search(text)
    arrangement = ""
    if len(objects) == 1:
        position = _POSITION.search(text)
        arrangement = position[0] if position else ""
    elif len(objects) > 1:
        arrangement, is_reading_order = _arrangement(text, matches[0].start())
        objects = objects if is_reading_order else objects[::-1]
    return Scene(tuple(objects), arrangement, background[1] if background else "")


def _arrangement(text: str, first_object: int) -> tuple[str, bool]:
    """Return the arrangement stated by a text, and whether it names the objects in reading order.

    Args:
        text: a caption of several objects.
        first_object: index in the text at which the first object is named.
    """
    for order, arrangement in _ORDERS.items():
        if order in text:
            return arrangement, True
    for relation, (arrangement, is_forward) in _RELATIONS.items():
        if relation in text:
            # "right of a star, a circle": a relation before both objects refers to the second one.
            is_before = text.index(relation) < first_object
            return arrangement, is_forward != is_before
    return "", True


def compare(actual: Scene, expected: Scene) -> Comparison:
    """Count the attributes of `expected` that `actual` has; objects are compared in reading order."""
    total = len(expected.objects)
    pairs = [
        (a.attributes, b.attributes) for a, b in zip(actual.objects, expected.objects, strict=False)
    ]  # missing objects count as wrong
    counts = {name: (sum(a[name] == b[name] for a, b in pairs), total) for name in OBJECT_ATTRIBUTES}
    counts["arrangement"] = (int(actual.arrangement == expected.arrangement), 1)
    counts["background"] = (int(actual.background == expected.background), 1)
    counts["count"] = (int(len(actual.objects) == total), 1)
    return Comparison(counts)


def aggregate(comparisons: Sequence[Comparison]) -> dict[str, float]:
    """Return accuracies: per attribute, over all of them (`attributes`), and of scenes without a mistake (`whole`)."""
    correct = {name: sum(comparison.counts[name][0] for comparison in comparisons) for name in ATTRIBUTES}
    expected = {name: sum(comparison.counts[name][1] for comparison in comparisons) for name in ATTRIBUTES}
    return {
        **{name: correct[name] / expected[name] for name in ATTRIBUTES},
        "attributes": sum(correct.values()) / sum(expected.values()),
        "whole": sum(comparison.all_correct for comparison in comparisons) / len(comparisons),
    }


def is_correct_answer(kind: str, answer: str, expected: str) -> bool:
    """Whether an answer to a question of this kind contains the expected word and no other that could answer it."""
    words = re.findall(r"[a-z]+", answer.lower())
    return {word for word in words if word in _ANSWERS[kind]} == {expected}

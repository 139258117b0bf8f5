"""Text about scenes: captions in several wordings, questions with answers, and changes of a scene."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

from seed_jax.data.world.scenes import BACKGROUNDS, COLUMN, OBJECT_ATTRIBUTES, ROW, Scene, SceneObject

NUMBER_WORDS = ("no", "one", "two", "three")
# Arrangement -> relation of the first of two objects to the second, of the second to the first, and the reading order.
FORWARD = {ROW: "left of", COLUMN: "above"}
BACKWARD = {ROW: "right of", COLUMN: "below"}
ORDER = {ROW: "from left to right", COLUMN: "from top to bottom"}


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about one image; `kind` is colour, shape, size, count, relation or background."""

    kind: str
    text: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Change:
    """A change of one attribute of a scene.

    Attributes:
        kind: colour, size, shape or background.
        instruction: the change as a request.
        difference: the change as a statement about the result.
        scene: the result.
    """

    kind: str
    instruction: str
    difference: str
    scene: Scene


QuestionOrChange = TypeVar("QuestionOrChange", Question, Change)


def group_by_kind(items: Iterable[QuestionOrChange]) -> dict[str, list[QuestionOrChange]]:
    groups: dict[str, list[QuestionOrChange]] = {}
    for item in items:
        groups.setdefault(item.kind, []).append(item)
    return groups


def sample_caption(scene: Scene, rng: np.random.Generator) -> str:
    return str(rng.choice(captions(scene)))


def captions(scene: Scene) -> tuple[str, ...]:
    """Return all captions of a scene."""
    names = [_full_name(obj) for obj in scene.objects]
    background = f"{scene.background} background"
    if len(names) == 1:
        descriptions = [f"{names[0]} {scene.arrangement}"]
    elif len(names) == 2:
        # Both name the objects in reading order. If a caption could start with the second object before any text tells
        # so, a model would have to choose the object attribute by attribute, and would mix the objects up.
        first, second = names
        descriptions = [
            f"{first} {FORWARD[scene.arrangement]} {second}",
            f"{BACKWARD[scene.arrangement]} {first}, {second}",
        ]
    else:
        descriptions = [f"{', '.join(names[:-1])} and {names[-1]} {ORDER[scene.arrangement]}"]
    return tuple(
        caption for text in descriptions for caption in (f"{text} on a {background}", f"on a {background}, {text}")
    )


def referring_expression(scene: Scene, obj: SceneObject) -> str:
    """Return the shortest name that is unique to the object within the scene."""
    return obj.shape if _has_unique_shape(scene, obj) else f"{obj.color} {obj.shape}"


def questions(scene: Scene) -> tuple[Question, ...]:
    """Return every question that has exactly one answer."""
    result = [
        Question("count", "How many things are there?", NUMBER_WORDS[len(scene.objects)]),
        Question("background", "What colour is the background?", scene.background),
    ]
    for obj in scene.objects:
        if _has_unique_shape(scene, obj):
            result.append(Question("colour", f"What colour is the {obj.shape}?", obj.color))
        if sum(other.color == obj.color for other in scene.objects) == 1:
            result.append(Question("shape", f"What shape is the {obj.color} thing?", obj.shape))
        result.append(Question("size", f"How large is the {referring_expression(scene, obj)}?", obj.size))
    for first, second in itertools.pairwise(scene.objects):
        for subject, anchor, relations in ((first, second, FORWARD), (second, first, BACKWARD)):
            subject_name, anchor_name = referring_expression(scene, subject), referring_expression(scene, anchor)
            text = f"Where is the {subject_name}, seen from the {anchor_name}?"
            result.append(Question("relation", text, relations[scene.arrangement].removesuffix(" of")))
    return tuple(result)


def changes(scene: Scene) -> Iterator[Change]:
    """Yield every change of one attribute of an object, or of the background, that leads to a valid scene."""
    for index, obj in enumerate(scene.objects):
        name = referring_expression(scene, obj)
        for kind in ("colour", "size", "shape"):
            for value in OBJECT_ATTRIBUTES[kind]:
                after = scene.with_object(index, obj.with_attribute(kind, value))
                if value == obj.attributes[kind] or not after.is_valid:
                    continue
                if kind == "shape":
                    instruction, difference = f"turn the {name} into a {value}", f"the {name} became a {value}"
                else:
                    instruction, difference = f"make the {name} {value}", f"the {name} became {value}"
                yield Change(kind, instruction, difference, after)
    for value in BACKGROUNDS:
        if value != scene.background:
            after = dataclasses.replace(scene, background=value)
            yield Change("background", f"make the background {value}", f"the background became {value}", after)


def sample_change(scene: Scene, rng: np.random.Generator, held_out: bool | None = None) -> Change:
    """Sample a change; all kinds are equally probable.

    Args:
        scene: the scene before the change.
        rng: source of randomness.
        held_out: whether the result shows a held-out combination; None allows both.
    """
    allowed = (change for change in changes(scene) if held_out is None or change.scene.held_out == held_out)
    by_kind = group_by_kind(allowed)
    candidates = by_kind[str(rng.choice(list(by_kind)))]
    return candidates[rng.integers(len(candidates))]


def _full_name(obj: SceneObject) -> str:
    return f"a {obj.size} {obj.color} {obj.shape}"


def _has_unique_shape(scene: Scene, obj: SceneObject) -> bool:
    return sum(other.shape == obj.shape for other in scene.objects) == 1

"""Samples for the ordinary templates: what the drawn world asks a model to learn."""

import dataclasses
from collections.abc import Callable

import numpy as np

from seed_jax.data.world import wording
from seed_jax.data.world.scenes import Scene, Thing, draw_scene

STORY_PICTURES = 4


@dataclasses.dataclass(frozen=True)
class Sample:
    """Texts and scenes in reading order, and what more its template wants to know."""

    items: tuple[str | Scene, ...]
    meta: dict = dataclasses.field(default_factory=dict)


def truth(scene: Scene) -> dict:
    """Return a scene as plain data."""
    return dataclasses.asdict(scene) | {"things": [dataclasses.asdict(thing) for thing in scene.things]}


def scene_of(truth: dict) -> Scene:
    """Undo `truth`."""
    return Scene(tuple(Thing(**each) for each in truth["things"]), truth["arrangement"], truth["background"])


def _captions(rng: np.random.Generator, held: bool, things: int | None) -> Sample:
    scene = draw_scene(rng, held, things)
    return Sample((scene, wording.caption(scene, rng)), {"truth": truth(scene)})


def _questions(rng: np.random.Generator, held: bool, things: int | None) -> Sample:
    scene = draw_scene(rng, held, things)
    possible = wording.by_kind(wording.questions(scene))
    kinds = [str(kind) for kind in rng.permutation(sorted(possible))]
    drawn = [possible[kind][rng.integers(len(possible[kind]))] for kind in kinds]
    said = [text for question in drawn for text in (question.text, question.answer)]
    return Sample((scene, *said), {"kinds": kinds})


def _edits(rng: np.random.Generator, held: bool, things: int | None) -> Sample:
    before = draw_scene(rng, held, things)
    change = wording.change(before, rng, held)
    return Sample((before, change.scene, change.instruction), {"kind": change.kind})


def _differences(rng: np.random.Generator, held: bool, things: int | None) -> Sample:
    before = draw_scene(rng, held, things)
    change = wording.change(before, rng, held)
    question = "What is different in image B?"
    return Sample((before, change.scene, question, change.difference), {"kind": change.kind})


def _stories(rng: np.random.Generator, held: bool, things: int | None) -> Sample:
    scene = draw_scene(rng, held, things or 1 + int(rng.integers(2)))
    items: list[str | Scene] = [wording.caption(scene, rng), scene]
    for _ in range(STORY_PICTURES - 1):
        change = wording.change(scene, rng, held)
        scene = change.scene
        items += [f"then {change.difference}", scene]
    return Sample(tuple(items), {"response_at": 2})


TASKS: dict[str, Callable[[np.random.Generator, bool, int | None], Sample]] = {
    "captions": _captions,
    "questions": _questions,
    "edits": _edits,
    "differences": _differences,
    "stories": _stories,
}


def make_sample(task: str, seed: int, number: int, held: bool = False, things: int | None = None) -> Sample:
    """Return sample `number` of a task; it is always the same.

    Args:
        held: with combinations that training never shows, instead of without.
        things: in every first scene, from one to three; None leaves it to chance.
    """
    return TASKS[task](np.random.default_rng([seed, int(held), list(TASKS).index(task), number]), held, things)

"""Training tasks of the synthetic world: samples for the templates that also serve real data."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from seed_jax.data.world import wording
from seed_jax.data.world.scenes import Scene, SceneObject, sample_scene

_STORY_IMAGES = 4


@dataclasses.dataclass(frozen=True)
class WorldSample:
    """Texts and scenes in reading order, and the metadata of the sample's record."""

    items: tuple[str | Scene, ...]
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)


def scene_to_dict(scene: Scene) -> dict[str, Any]:
    """Return a scene as plain data, as the metadata `truth` of caption records holds it."""
    return {
        "things": [{**obj.attributes, "x": obj.x, "y": obj.y} for obj in scene.objects],
        "arrangement": scene.arrangement,
        "background": scene.background,
    }


def scene_from_dict(truth: dict[str, Any]) -> Scene:
    """Return the scene of `scene_to_dict`."""
    objects = (SceneObject(obj["size"], obj["colour"], obj["shape"], obj["x"], obj["y"]) for obj in truth["things"])
    return Scene(tuple(objects), truth["arrangement"], truth["background"])


def _caption(rng: np.random.Generator, held_out: bool, num_objects: int | None) -> WorldSample:
    scene = sample_scene(rng, held_out, num_objects)
    return WorldSample((scene, wording.sample_caption(scene, rng)), {"truth": scene_to_dict(scene)})


def _questions(rng: np.random.Generator, held_out: bool, num_objects: int | None) -> WorldSample:
    scene = sample_scene(rng, held_out, num_objects)
    by_kind = wording.group_by_kind(wording.questions(scene))
    kinds = [str(kind) for kind in rng.permutation(sorted(by_kind))]
    questions = [by_kind[kind][rng.integers(len(by_kind[kind]))] for kind in kinds]
    texts = [text for question in questions for text in (question.text, question.answer)]
    return WorldSample((scene, *texts), {"kinds": kinds})


def _edit(rng: np.random.Generator, held_out: bool, num_objects: int | None) -> WorldSample:
    before = sample_scene(rng, held_out, num_objects)
    change = wording.sample_change(before, rng, held_out)
    return WorldSample((before, change.scene, change.instruction), {"kind": change.kind})


def _difference(rng: np.random.Generator, held_out: bool, num_objects: int | None) -> WorldSample:
    before = sample_scene(rng, held_out, num_objects)
    change = wording.sample_change(before, rng, held_out)
    question = "What is different in image B?"
    return WorldSample((before, change.scene, question, change.difference), {"kind": change.kind})


def _story(rng: np.random.Generator, held_out: bool, num_objects: int | None) -> WorldSample:
    scene = sample_scene(rng, held_out, num_objects or 1 + int(rng.integers(2)))
    items: list[str | Scene] = [wording.sample_caption(scene, rng), scene]
    for _ in range(_STORY_IMAGES - 1):
        change = wording.sample_change(scene, rng, held_out)
        scene = change.scene
        items += [f"then {change.difference}", scene]
    return WorldSample(tuple(items), {"response_at": 2})


TASKS: dict[str, Callable[[np.random.Generator, bool, int | None], WorldSample]] = {
    "captions": _caption,
    "questions": _questions,
    "edits": _edit,
    "differences": _difference,
    "stories": _story,
}


def make_sample(
    task: str, seed: int, index: int, held_out: bool = False, num_objects: int | None = None
) -> WorldSample:
    """Return one sample of a task; a function of its arguments alone.

    Args:
        task: a key of `TASKS`.
        seed: of the data set.
        index: of the sample in the data set.
        held_out: whether every scene shows a held-out combination; otherwise none does.
        num_objects: of the first scene, from one to three; None samples it.
    """
    rng = np.random.default_rng([seed, int(held_out), list(TASKS).index(task), index])
    return TASKS[task](rng, held_out, num_objects)

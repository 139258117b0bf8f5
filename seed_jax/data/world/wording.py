"""What can be said about scenes: captions in several wordings, questions with answers, changes."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

from seed_jax.data.world.scenes import BACKGROUNDS, COLOURS, ROW, SHAPES, SIZES, Scene, Thing

NUMBERS = ("no", "one", "two", "three")
FORWARD = {True: "left of", False: "above"}  # how the first of two things stands to the second: in a row or not
BACKWARD = {True: "right of", False: "below"}
ORDER = {True: "from left to right", False: "from top to bottom"}


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about one picture; `kind` is colour, shape, size, count, relation or background."""

    kind: str
    text: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Change:
    """One change of a scene: as an instruction, as what is different afterwards, and what it leads to."""

    kind: str
    instruction: str
    difference: str
    scene: Scene


Said = TypeVar("Said", Question, Change)


def by_kind(several: Iterable[Said]) -> dict[str, list[Said]]:
    """Sort questions or changes by their kind."""
    found: dict[str, list[Said]] = {}
    for each in several:
        found.setdefault(each.kind, []).append(each)
    return found


def full_name(thing: Thing) -> str:
    return f"a {thing.size} {thing.colour} {thing.shape}"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Return one of the ways to describe everything in a scene."""
    return str(rng.choice(captions(scene)))


def captions(scene: Scene) -> tuple[str, ...]:
    """Return all ways to describe a scene."""
    names, ground = [full_name(thing) for thing in scene.things], f"{scene.background} background"
    across = scene.arrangement == ROW
    if len(names) == 1:
        said = [f"{names[0]} {scene.arrangement}"]
    elif len(names) == 2:
        # In the pictures' order either way. Where the second thing may come first, nothing before it tells so: whoever
        # writes has to choose between things attribute by attribute, and mixes them up.
        said = [f"{names[0]} {FORWARD[across]} {names[1]}", f"{BACKWARD[across]} {names[0]}, {names[1]}"]
    else:
        said = [f"{', '.join(names[:-1])} and {names[-1]} {ORDER[across]}"]
    return tuple(wording for each in said for wording in (f"{each} on a {ground}", f"on a {ground}, {each}"))


def referred(scene: Scene, thing: Thing) -> str:
    """Return the shortest name that means one thing only."""
    if sum(each.shape == thing.shape for each in scene.things) == 1:
        return thing.shape
    return f"{thing.colour} {thing.shape}"


def questions(scene: Scene) -> tuple[Question, ...]:
    """Return every question that has one answer."""
    found = [
        Question("count", "How many things are there?", NUMBERS[len(scene.things)]),
        Question("background", "What colour is the background?", scene.background),
    ]
    for thing in scene.things:
        if sum(each.shape == thing.shape for each in scene.things) == 1:
            found.append(Question("colour", f"What colour is the {thing.shape}?", thing.colour))
        if sum(each.colour == thing.colour for each in scene.things) == 1:
            found.append(Question("shape", f"What shape is the {thing.colour} thing?", thing.shape))
        found.append(Question("size", f"How large is the {referred(scene, thing)}?", thing.size))
    for first, second in itertools.pairwise(scene.things):
        across = scene.arrangement == ROW
        for one, other, words in ((first, second, FORWARD), (second, first, BACKWARD)):
            text = f"Where is the {referred(scene, one)}, seen from the {referred(scene, other)}?"
            found.append(Question("relation", text, words[across].removesuffix(" of")))
    return tuple(found)


def changes(scene: Scene) -> Iterator[Change]:
    """Yield every change of one property, or of the ground, that leaves a possible scene."""
    for index, thing in enumerate(scene.things):
        name = referred(scene, thing)
        for kind, values in (("colour", COLOURS), ("size", SIZES), ("shape", SHAPES)):
            old = getattr(thing, kind)
            for value in values:
                after = scene.replace(index, **{kind: value})
                if value == old or not after.fits:
                    continue
                if kind == "shape":
                    asked, became = f"turn the {name} into a {value}", f"the {name} became a {value}"
                else:
                    asked, became = f"make the {name} {value}", f"the {name} became {value}"
                yield Change(kind, asked, became, after)
    for ground in BACKGROUNDS:
        if ground != scene.background:
            after = dataclasses.replace(scene, background=ground)
            yield Change("background", f"make the background {ground}", f"the background became {ground}", after)


def change(scene: Scene, rng: np.random.Generator, held: bool | None = None) -> Change:
    """Draw a change, each kind as often; `held` says whether it must lead to a held combination, or to none."""
    possible = by_kind(each for each in changes(scene) if held is None or each.scene.held == held)
    chosen = possible[str(rng.choice(list(possible)))]
    return chosen[rng.integers(len(chosen))]

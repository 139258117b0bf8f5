"""A scene as class numbers, for a model that is taught to read it: as a whole, and patch by patch."""

import numpy as np
from jaxtyping import Int32

from seed_jax.data.world.scenes import BACKGROUNDS, COLOURS, COLUMN, PLACES, ROW, SHAPES, SIZES, Scene

MOST_THINGS = 3
UNSAID = -1  # the class of what a picture does not tell
_ARRANGEMENTS = (ROW, COLUMN, *PLACES)
_OF_THING = {"colour": tuple(COLOURS), "shape": SHAPES, "size": tuple(SIZES)}
# What is asked of a scene, in order: (kind, number of classes); of things that are not there the last class is right.
ATTRIBUTES: tuple[tuple[str, int], ...] = (
    ("background", len(BACKGROUNDS)),
    ("arrangement", len(_ARRANGEMENTS)),
    ("count", MOST_THINGS),
    *[
        attribute
        for _ in range(MOST_THINGS)
        for attribute in ((kind, len(names) + 1) for kind, names in _OF_THING.items())
    ],
)


# What is asked of each patch: which of the things it shows, and that thing's look; the last class is none.
PATCH_ATTRIBUTES: tuple[tuple[str, int], ...] = (
    ("place", MOST_THINGS + 1),
    *((kind, len(names) + 1) for kind, names in _OF_THING.items()),
)


def patch_labels(scene: Scene, grid: int) -> Int32[np.ndarray, "N 4"]:
    """Return the right class of each attribute of each of grid x grid patches, row by row."""
    found = np.tile(np.array([classes - 1 for _, classes in PATCH_ATTRIBUTES], np.int32), (grid, grid, 1))
    middle = (np.arange(grid) + 0.5) / grid
    nearest = np.full((grid, grid), np.inf)
    for place, thing in enumerate(scene.things):
        away = np.maximum(abs(middle[None] - thing.x), abs(middle[:, None] - thing.y))
        shown = (away <= thing.radius + 0.2 / grid) & (away < nearest)
        nearest = np.where(shown, away, nearest)
        found[shown] = [place, *(names.index(getattr(thing, kind)) for kind, names in _OF_THING.items())]
    return found.reshape(grid * grid, -1)


def labels(scene: Scene) -> Int32[np.ndarray, " A"]:
    """Return the right class of each attribute."""
    found = [
        list(BACKGROUNDS).index(scene.background),
        _ARRANGEMENTS.index(scene.arrangement),
        len(scene.things) - 1,
    ]
    for thing in scene.things:
        found += [names.index(getattr(thing, kind)) for kind, names in _OF_THING.items()]
    found += [classes - 1 for _, classes in ATTRIBUTES[len(found) :]]
    return np.array(found, np.int32)


def without_colours(found: Int32[np.ndarray, "*S A"], attributes: tuple[tuple[str, int], ...]) -> np.ndarray:
    """Return labels that say nothing of the colours of what is there, and of the ground."""
    hidden = np.array([kind in ("colour", "background") for kind, _ in attributes])
    nothing = np.array([count - 1 if kind == "colour" else -1 for kind, count in attributes])
    return np.where(hidden & (found != nothing), UNSAID, found).astype(np.int32)

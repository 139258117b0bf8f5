"""Class labels of a scene and of each image patch, for a model that learns to read attributes."""

import numpy as np
from jaxtyping import Int32

from seed_jax.data.world.scenes import BACKGROUNDS, COLUMN, OBJECT_ATTRIBUTES, POSITIONS, ROW, Scene

MAX_OBJECTS = 3
UNLABELED = -1  # label of attributes that the image does not show
_ARRANGEMENTS = (ROW, COLUMN, *POSITIONS)
_OBJECT_ATTRIBUTES = ("colour", "shape", "size")
_OBJECT_CLASSES = tuple((name, len(OBJECT_ATTRIBUTES[name]) + 1) for name in _OBJECT_ATTRIBUTES)
# (attribute, number of classes) of a scene, in order; the last class of an object's attributes is "no such object".
ATTRIBUTES: tuple[tuple[str, int], ...] = (
    ("background", len(BACKGROUNDS)),
    ("arrangement", len(_ARRANGEMENTS)),
    ("count", MAX_OBJECTS),
    *(_OBJECT_CLASSES * MAX_OBJECTS),
)
# (attribute, number of classes) of a patch: the index of the object it shows and that object's attributes; the last
# class is "background".
PATCH_ATTRIBUTES: tuple[tuple[str, int], ...] = (("object", MAX_OBJECTS + 1), *_OBJECT_CLASSES)


def scene_labels(scene: Scene) -> Int32[np.ndarray, " A"]:
    """Return the class of each of `ATTRIBUTES`."""
    classes = [
        list(BACKGROUNDS).index(scene.background),
        _ARRANGEMENTS.index(scene.arrangement),
        len(scene.objects) - 1,
    ]
    for obj in scene.objects:
        classes += _object_classes(obj.attributes)
    classes += [count - 1 for _, count in ATTRIBUTES[len(classes) :]]
    return np.array(classes, np.int32)


def patch_labels(scene: Scene, grid: int) -> Int32[np.ndarray, "N 4"]:
    """Return the class of each of `PATCH_ATTRIBUTES` for each of grid x grid patches, row by row."""
    classes = np.tile(np.array([count - 1 for _, count in PATCH_ATTRIBUTES], np.int32), (grid, grid, 1))
    centers = (np.arange(grid) + 0.5) / grid
    nearest = np.full((grid, grid), np.inf)
    for index, obj in enumerate(scene.objects):
        distance = np.maximum(abs(centers[None] - obj.x), abs(centers[:, None] - obj.y))
        shown = (distance <= obj.radius + 0.2 / grid) & (distance < nearest)
        nearest = np.where(shown, distance, nearest)
        classes[shown] = [index, *_object_classes(obj.attributes)]
    return classes.reshape(grid * grid, -1)


def mask_color_labels(
    labels: Int32[np.ndarray, "*S A"], attributes: tuple[tuple[str, int], ...]
) -> Int32[np.ndarray, "*S A"]:
    """Replace the labels of existing objects' colors and of the background by `UNLABELED`."""
    is_color = np.array([name in ("colour", "background") for name, _ in attributes])
    no_object = np.array([count - 1 if name == "colour" else -1 for name, count in attributes])
    return np.where(is_color & (labels != no_object), UNLABELED, labels).astype(np.int32)


def _object_classes(attributes: dict[str, str]) -> list[int]:
    return [OBJECT_ATTRIBUTES[name].index(attributes[name]) for name in _OBJECT_ATTRIBUTES]

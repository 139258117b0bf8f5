"""Scenes of the synthetic world: one to three objects, their arrangement, and the combinations held out of training."""

import dataclasses
import itertools

import numpy as np

COLORS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 0),
    "yellow": (244, 222, 30),
    "green": (30, 150, 50),
    "cyan": (40, 200, 215),
    "blue": (30, 70, 210),
    "purple": (130, 45, 165),
    "pink": (250, 130, 190),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
SIZES = {"small": 0.095, "medium": 0.14, "large": 0.195}  # radius as a fraction of the image size
# Attributes of an object and their values, under the names that texts, record metadata and results.json use ("What
# colour is the star?"). Another spelling would change the records of existing shards.
OBJECT_ATTRIBUTES = {"size": tuple(SIZES), "colour": tuple(COLORS), "shape": SHAPES}
BACKGROUNDS = {"white": (240, 240, 240), "grey": (128, 128, 128), "black": (24, 24, 24), "beige": (222, 203, 168)}
# Center of the only object of a scene: (x, y) as fractions of the image size.
POSITIONS = {
    "in the middle": (0.5, 0.5),
    "on the left": (0.25, 0.5),
    "on the right": (0.75, 0.5),
    "at the top": (0.5, 0.25),
    "at the bottom": (0.5, 0.75),
}
ROW, COLUMN = "row", "column"
# Number of objects -> their centers along the row or column; across it they are centered.
_CENTERS = {2: (0.25, 0.75), 3: (0.18, 0.5, 0.82)}
_JITTER = 0.025  # largest offset by which all objects of a scene are shifted together
_GAP = 0.02  # smallest distance between neighboring objects
# Probabilities of one, two and three objects. Scenes that do not fit are sampled again, so only 7 % have three.
_COUNT_PROBABILITIES = (0.35, 0.45, 0.2)


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """One object; (x, y) is its center as fractions of the image size, from the left and from the top."""

    size: str
    color: str
    shape: str
    x: float = 0.5
    y: float = 0.5

    @property
    def radius(self) -> float:
        return SIZES[self.size]

    @property
    def combination(self) -> tuple[str, str, str]:
        return self.size, self.color, self.shape

    @property
    def attributes(self) -> dict[str, str]:
        """The values of `OBJECT_ATTRIBUTES`."""
        return {"size": self.size, "colour": self.color, "shape": self.shape}

    def with_attribute(self, name: str, value: str) -> "SceneObject":
        """Return the object with one of `OBJECT_ATTRIBUTES` changed."""
        size, color, shape = (self.attributes | {name: value}).values()
        return SceneObject(size, color, shape, self.x, self.y)


@dataclasses.dataclass(frozen=True)
class Scene:
    """The content of an image.

    Attributes:
        objects: from left to right (a row) or from top to bottom (a column).
        arrangement: "row" or "column"; one of `POSITIONS` for a single object.
        background: one of `BACKGROUNDS`.
    """

    objects: tuple[SceneObject, ...]
    arrangement: str
    background: str

    @property
    def held_out(self) -> bool:
        """Whether an object has a held-out combination."""
        return any(is_held_out(*obj.combination) for obj in self.objects)

    @property
    def content(self) -> tuple[tuple[tuple[str, str, str], ...], str, str]:
        """Everything that a description of the scene can state; exact positions are not part of it."""
        return tuple(obj.combination for obj in self.objects), self.arrangement, self.background

    def with_object(self, index: int, obj: SceneObject) -> "Scene":
        """Return the scene with one object replaced."""
        return dataclasses.replace(self, objects=(*self.objects[:index], obj, *self.objects[index + 1 :]))

    @property
    def is_valid(self) -> bool:
        """Whether objects are apart, inside the image, and pairwise different in more than their size."""
        is_row = self.arrangement == ROW
        centers = [obj.x if is_row else obj.y for obj in self.objects]
        ends = [(center - obj.radius, center + obj.radius) for center, obj in zip(centers, self.objects, strict=True)]
        apart = all(before[1] + _GAP <= after[0] for before, after in itertools.pairwise(ends))
        inside = all(obj.radius <= min(center, 1 - center) + 1e-6 for obj in self.objects for center in (obj.x, obj.y))
        different = len({(obj.color, obj.shape) for obj in self.objects}) == len(self.objects)
        return apart and inside and different


def is_held_out(size: str, color: str, shape: str) -> bool:
    """Whether a combination is held out of training: one color for each shape in each size.

    Training shows every pair of the three attributes together, but never all three of a held-out combination.
    """
    index = list(COLORS).index(color) + 3 * SHAPES.index(shape) + 3 * list(SIZES).index(size)
    return index % len(COLORS) == 1


HELD_OUT = tuple(combination for combination in itertools.product(SIZES, COLORS, SHAPES) if is_held_out(*combination))


def sample_scene(rng: np.random.Generator, held_out: bool = False, num_objects: int | None = None) -> Scene:
    """Sample a valid scene.

    Args:
        rng: source of randomness.
        held_out: whether one object has a held-out combination; otherwise none has.
        num_objects: from one to three; None samples it.
    """
    while True:
        count = num_objects or 1 + int(rng.choice(len(_COUNT_PROBABILITIES), p=_COUNT_PROBABILITIES))
        combinations = [_sample_combination(rng) for _ in range(count)]
        if held_out:
            combinations[rng.integers(count)] = HELD_OUT[rng.integers(len(HELD_OUT))]
        scene = _arrange(rng, combinations, str(rng.choice(list(BACKGROUNDS))))
        if scene.is_valid and scene.held_out == held_out:
            return scene


def _sample_combination(rng: np.random.Generator) -> tuple[str, str, str]:
    return str(rng.choice(list(SIZES))), str(rng.choice(list(COLORS))), str(rng.choice(SHAPES))


def _arrange(rng: np.random.Generator, combinations: list[tuple[str, str, str]], background: str) -> Scene:
    """Place objects; the scene may be invalid."""
    shift = rng.uniform(-_JITTER, _JITTER, 2)
    if len(combinations) == 1:
        arrangement = str(rng.choice(list(POSITIONS)))
        centers = [POSITIONS[arrangement]]
    else:
        arrangement = str(rng.choice([ROW, COLUMN]))
        along = _CENTERS[len(combinations)]
        centers = [(center, 0.5) if arrangement == ROW else (0.5, center) for center in along]
    positions = np.array(centers) + shift
    objects = (
        SceneObject(*combination, float(x), float(y))
        for combination, (x, y) in zip(combinations, positions, strict=True)
    )
    return Scene(tuple(objects), arrangement, background)

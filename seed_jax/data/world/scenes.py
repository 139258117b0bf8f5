"""Scenes: one to three things, how they stand to each other, and which combinations are held back from training."""

import dataclasses
import itertools

import numpy as np

COLOURS = {
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
SIZES = {"small": 0.095, "medium": 0.14, "large": 0.195}  # radius as a share of the picture's side
BACKGROUNDS = {"white": (240, 240, 240), "grey": (128, 128, 128), "black": (24, 24, 24), "beige": (222, 203, 168)}
# Where the only thing of a scene stands: (x, y) as shares of the side.
PLACES = {
    "in the middle": (0.5, 0.5),
    "on the left": (0.25, 0.5),
    "on the right": (0.75, 0.5),
    "at the top": (0.5, 0.25),
    "at the bottom": (0.5, 0.75),
}
ROW, COLUMN = "row", "column"
# Where two or three things stand along their row or column; across it they are in the middle.
SITES = {2: (0.25, 0.75), 3: (0.18, 0.5, 0.82)}
_JITTER = 0.025  # how far all things of a scene are shifted together, at most
_GAP = 0.02  # between things
# How often one, two, three things are tried. What does not fit is drawn anew, so 7 % of the scenes have three.
_NUMBERS = (0.35, 0.45, 0.2)


@dataclasses.dataclass(frozen=True)
class Thing:
    """One thing; (x, y) is its centre, as shares of the picture's side from the left and from the top."""

    size: str
    colour: str
    shape: str
    x: float = 0.5
    y: float = 0.5

    @property
    def radius(self) -> float:
        return SIZES[self.size]

    @property
    def look(self) -> tuple[str, str, str]:
        return self.size, self.colour, self.shape


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Attributes:
        things: from left to right (a row) or from top to bottom (a column).
        arrangement: "row" or "column"; where there is one thing only, one of `PLACES`.
    """

    things: tuple[Thing, ...]
    arrangement: str
    background: str

    @property
    def held(self) -> bool:
        """Whether it shows a combination that training never does."""
        return any(is_held(*thing.look) for thing in self.things)

    @property
    def meaning(self) -> tuple:
        """Return all that counts; where exactly things stand does not."""
        return tuple(thing.look for thing in self.things), self.arrangement, self.background

    def replace(self, index: int, **changes: str) -> "Scene":
        """Change one thing where it stands."""
        things = list(self.things)
        things[index] = dataclasses.replace(things[index], **changes)
        return dataclasses.replace(self, things=tuple(things))

    @property
    def fits(self) -> bool:
        """Whether nothing overlaps, nothing reaches over the edge, and no two things look alike but for their size."""
        across = self.arrangement == ROW
        ends = [
            (centre - thing.radius, centre + thing.radius)
            for thing in self.things
            for centre in [thing.x if across else thing.y]
        ]
        apart = all(before[1] + _GAP <= after[0] for before, after in itertools.pairwise(ends))
        inside = all(
            thing.radius <= min(centre, 1 - centre) + 1e-6 for thing in self.things for centre in (thing.x, thing.y)
        )
        different = len({(thing.colour, thing.shape) for thing in self.things}) == len(self.things)
        return apart and inside and different


def is_held(size: str, colour: str, shape: str) -> bool:
    """Whether a combination is held back: one colour of each shape in each size.

    Any two of the three go together in training, all three of a held combination never do.
    """
    place = list(COLOURS).index(colour) + 3 * SHAPES.index(shape) + 3 * list(SIZES).index(size)
    return place % len(COLOURS) == 1


HELD = tuple(look for look in itertools.product(SIZES, COLOURS, SHAPES) if is_held(*look))


def draw_scene(rng: np.random.Generator, held: bool = False, number: int | None = None) -> Scene:
    """Draw a scene of `number` things, or of one to three: with `held` one of them is a held combination, else none."""
    while True:
        count = number or 1 + int(rng.choice(len(_NUMBERS), p=_NUMBERS))
        looks = [_look(rng) for _ in range(count)]
        if held:
            looks[rng.integers(count)] = HELD[rng.integers(len(HELD))]
        scene = _arranged(rng, looks, str(rng.choice(list(BACKGROUNDS))))
        if scene.fits and scene.held == held:
            return scene


def _look(rng: np.random.Generator) -> tuple[str, str, str]:
    return str(rng.choice(list(SIZES))), str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))


def _arranged(rng: np.random.Generator, looks: list[tuple[str, str, str]], background: str) -> Scene:
    """Put the things somewhere; they may not fit side by side."""
    shift = rng.uniform(-_JITTER, _JITTER, 2)
    if len(looks) == 1:
        arrangement = str(rng.choice(list(PLACES)))
        sites = [PLACES[arrangement]]
    else:
        arrangement = str(rng.choice([ROW, COLUMN]))
        sites = [(along, 0.5) if arrangement == ROW else (0.5, along) for along in SITES[len(looks)]]
    places = np.array(sites) + shift
    things = (Thing(*look, float(x), float(y)) for look, (x, y) in zip(looks, places, strict=True))
    return Scene(tuple(things), arrangement, background)

"""Read from pixels what a picture of the drawn world shows: things with size, colour and shape, and how they stand.

No learning: things are what stands out from the ground; shape and size are those whose ideal picture fits best.
"""

import functools

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage

from seed_jax.data.world import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, Thing
from seed_jax.data.world.painting import coverage
from seed_jax.data.world.scenes import COLUMN, PLACES, ROW

_STANDS_OUT = 70.0  # distance from the ground in RGB from which a pixel can belong to a thing
_LEAST_SHARE = 0.003  # of the picture's area that a thing has at least
_MOST_THINGS = 8  # more are noise
_SHIFTS = (-0.5, 0.0, 0.5)  # in pixels, tried around the centre of mass


def read(picture: UInt8[np.ndarray, "S S 3"]) -> Scene:
    """Return the scene that a picture shows, things in their order; it may have none at all.

    A picture that is no picture of this world gives some scene nevertheless, which hardly fits what was meant.
    """
    pixels = picture.astype(np.float64)
    smooth = ndimage.gaussian_filter(pixels, (0.6, 0.6, 0))
    ground = _ground(smooth)
    distance = np.linalg.norm(smooth - ground, axis=-1)
    labels, count = ndimage.label(distance > _STANDS_OUT)
    least = _LEAST_SHARE * labels.size
    areas = ndimage.sum_labels(np.ones(labels.shape), labels, np.arange(1, count + 1))
    kept = [label + 1 for label in np.argsort(-areas)[:_MOST_THINGS] if areas[label] >= least]
    things = [_thing(pixels, distance, labels == label, ground) for label in kept]
    return _scene(things, _nearest(BACKGROUNDS, ground))


def _ground(pixels: np.ndarray) -> Float[np.ndarray, "3"]:
    """Return the colour of the ground: the median along the edge, where things never stand."""
    edge = np.concatenate(
        [pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3), pixels[:, [0, 1, -2, -1]].reshape(-1, 3)]
    )
    return np.median(edge, axis=0)


def _nearest(names: dict[str, tuple[int, int, int]], colour: np.ndarray) -> str:
    values = np.array(list(names.values()), float)
    return list(names)[int(np.linalg.norm(values - colour, axis=1).argmin())]


def _thing(pixels: np.ndarray, distance: np.ndarray, mask: np.ndarray, ground: np.ndarray) -> Thing:
    side = len(mask)
    core = mask & (distance >= np.median(distance[mask]))
    colour = np.median(pixels[core], axis=0)
    near = ndimage.binary_dilation(mask, iterations=2)
    # How much of each pixel the thing covers: its place on the way from the ground's colour to its own.
    way = colour - ground
    cover = np.where(near, ((pixels - ground) @ way / (way @ way)).clip(0, 1), 0.0)
    y, x = ndimage.center_of_mass(cover)
    shape, size, centre = _best_fit(cover, (x + 0.5, y + 0.5))
    return Thing(size, _nearest(COLOURS, colour), shape, centre[0] / side, centre[1] / side)


def _best_fit(cover: np.ndarray, mass: tuple[float, float]) -> tuple[str, str, tuple[float, float]]:
    """Return the shape, size and centre of the ideal thing that covers most nearly the same."""
    side, best = len(cover), None
    area, margin = cover.sum(), 2 * int(max(SIZES.values()) * side)
    wide = np.pad(cover, margin)
    for shape in SHAPES:
        for size, radius in SIZES.items():
            template_area, offset = _measures(shape, radius * side)
            if not 0.5 < template_area / area < 2.0:
                continue
            for dx in _SHIFTS:
                for dy in _SHIFTS:
                    centre = (mass[0] - offset[0] + dx, mass[1] - offset[1] + dy)
                    ideal, corner = _patch(shape, radius * side, centre, margin)
                    part = wide[corner[1] :, corner[0] :][: 2 * margin, : 2 * margin]
                    # Outside the patch the ideal covers nothing: what is there counts as error, too.
                    error = np.square(ideal - part).sum() - np.square(part).sum()
                    if best is None or error < best[0]:
                        best = (error, shape, size, centre)
    if best is None:  # far too large or small for anything: the nearest area
        sizes = [(abs(_measures(sh, SIZES[si] * side)[0] - area), sh, si) for sh in SHAPES for si in SIZES]
        best = (None, *min(sizes)[1:], mass)
    return best[1], best[2], best[3]


def _patch(
    shape: str, radius: float, centre: tuple[float, float], margin: int
) -> tuple[Float[np.ndarray, "P P"], tuple[int, int]]:
    """Return an ideal picture of twice the margin and its corner in a picture that was widened by the margin."""
    # To a quarter of a pixel, so that the same ideal pictures serve again and again.
    (whole_x, part_x), (whole_y, part_y) = (divmod(round(place * 4), 4) for place in centre)
    return _ideal(shape, radius, part_x / 4, part_y / 4, margin), (whole_x, whole_y)


@functools.lru_cache(maxsize=1024)
def _ideal(shape: str, radius: float, x: float, y: float, margin: int) -> np.ndarray:
    return coverage(shape, radius, (margin + x, margin + y), 2 * margin)


@functools.lru_cache
def _measures(shape: str, radius: float) -> tuple[float, tuple[float, float]]:
    """Return a shape's area and how far its centre of mass is from its centre, in pixels."""
    side = int(4 * radius) + 4
    cover = coverage(shape, radius, (side / 2, side / 2), side)
    y, x = ndimage.center_of_mass(cover)
    return float(cover.sum()), (x + 0.5 - side / 2, y + 0.5 - side / 2)


def _scene(things: list[Thing], background: str) -> Scene:
    if not things:
        return Scene((), "", background)
    if len(things) == 1:
        (only,) = things
        place = min(PLACES, key=lambda name: np.hypot(only.x - PLACES[name][0], only.y - PLACES[name][1]))
        return Scene((only,), place, background)
    spread = {ROW: np.ptp([thing.x for thing in things]), COLUMN: np.ptp([thing.y for thing in things])}
    arrangement = max(spread, key=spread.get)
    ordered = sorted(things, key=lambda thing: thing.x if arrangement == ROW else thing.y)
    return Scene(tuple(ordered), arrangement, background)

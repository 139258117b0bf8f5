"""Recognize the scene in an image of the synthetic world: objects with size, color and shape, and their arrangement.

Nothing is learned: objects are connected regions that differ from the background; their shape and size are those of the
rendered template with the smallest squared error.
"""

import functools

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from seed_jax.data.world import BACKGROUNDS, COLORS, SHAPES, SIZES, Scene, SceneObject
from seed_jax.data.world.rendering import coverage
from seed_jax.data.world.scenes import COLUMN, POSITIONS, ROW

_MIN_DISTANCE = 70.0  # RGB distance from the background from which a pixel can belong to an object
_MIN_AREA = 0.003  # of an object, as a fraction of the image
_MAX_OBJECTS = 8  # more regions are noise
_SHIFTS = (-0.5, 0.0, 0.5)  # in pixels, tried around the center of mass


def read_image(image: UInt8[np.ndarray, "S S 3"]) -> Scene:
    """Return the scene that an image shows, objects in reading order.

    An image without objects gives a scene without objects. Any image gives some scene: what the image lacks is not
    reported but differs from the scene it is compared with.
    """
    pixels = image.astype(np.float64)
    smooth = ndimage.gaussian_filter(pixels, (0.6, 0.6, 0))
    background = _background_color(smooth)
    distance = np.linalg.norm(smooth - background, axis=-1)
    regions = np.empty(distance.shape, np.int32)
    ndimage.label(distance > _MIN_DISTANCE, output=regions)
    areas = np.bincount(regions.ravel())[1:]
    largest = [index for index in np.argsort(-areas)[:_MAX_OBJECTS] if areas[index] >= _MIN_AREA * regions.size]
    objects = [_recognize(pixels, distance, regions == index + 1, background) for index in largest]
    return _arrange(objects, _nearest(BACKGROUNDS, background))


def _background_color(pixels: Float[np.ndarray, "S S 3"]) -> Float[np.ndarray, "3"]:
    """Return the median color along the edges, which objects never reach."""
    edges = (pixels[:2], pixels[-2:], pixels[:, [0, 1, -2, -1]])
    return np.median(np.concatenate([edge.reshape(-1, 3) for edge in edges]), axis=0)


def _nearest(palette: dict[str, tuple[int, int, int]], color: Float[np.ndarray, "3"]) -> str:
    values = np.array(list(palette.values()), float)
    return list(palette)[int(np.linalg.norm(values - color, axis=1).argmin())]


def _recognize(
    pixels: Float[np.ndarray, "S S 3"],
    distance: Float[np.ndarray, "S S"],
    mask: Bool[np.ndarray, "S S"],
    background: Float[np.ndarray, "3"],
) -> SceneObject:
    size = len(mask)
    core = mask & (distance >= np.median(distance[mask]))
    color = np.median(pixels[core], axis=0)
    near = ndimage.binary_dilation(mask, iterations=2)
    # How much of each pixel the object covers: the pixel's projection onto the line from background to object color.
    direction = color - background
    cover = np.where(near, ((pixels - background) @ direction / (direction @ direction)).clip(0, 1), 0.0)
    shape, size_name, center = _match_template(cover, _center_of_mass(cover))
    return SceneObject(size_name, _nearest(COLORS, color), shape, center[0] / size, center[1] / size)


def _match_template(
    cover: Float[np.ndarray, "S S"], center_of_mass: tuple[float, float]
) -> tuple[str, str, tuple[float, float]]:
    """Return shape, size and center (x, y) of the template with the smallest squared error."""
    image_size = len(cover)
    area = cover.sum()
    margin = 2 * int(max(SIZES.values()) * image_size)
    padded = np.pad(cover, margin)
    best_error, best = np.inf, None
    for shape in SHAPES:
        for size, radius in SIZES.items():
            template_area, offset = _template_moments(shape, radius * image_size)
            if not 0.5 < template_area / area < 2.0:
                continue
            for dx in _SHIFTS:
                for dy in _SHIFTS:
                    center = (center_of_mass[0] - offset[0] + dx, center_of_mass[1] - offset[1] + dy)
                    template, (left, top) = _placed_template(shape, radius * image_size, center, margin)
                    window = padded[top:, left:][: 2 * margin, : 2 * margin]
                    # Outside the window the template covers nothing; what the object covers there is an error too.
                    error = np.square(template - window).sum() - np.square(window).sum()
                    if error < best_error:
                        best_error, best = error, (shape, size, center)
    if best is not None:
        return best
    # Far too large or too small for every template: the nearest area.
    _, shape, size = min(
        (abs(_template_moments(shape, SIZES[size] * image_size)[0] - area), shape, size)
        for shape in SHAPES
        for size in SIZES
    )
    return shape, size, center_of_mass


def _placed_template(
    shape: str, radius: float, center: tuple[float, float], margin: int
) -> tuple[Float[np.ndarray, "P P"], tuple[int, int]]:
    """Return a template of twice the margin, and its left and top edge in the image padded by the margin."""
    # Rounded to a quarter of a pixel, so that cached templates are reused.
    (left, x), (top, y) = (divmod(round(position * 4), 4) for position in center)
    return _template(shape, radius, x / 4, y / 4, margin), (left, top)


@functools.lru_cache(maxsize=1024)
def _template(shape: str, radius: float, x: float, y: float, margin: int) -> Float[np.ndarray, "P P"]:
    return coverage(shape, radius, (margin + x, margin + y), 2 * margin)


@functools.lru_cache
def _template_moments(shape: str, radius: float) -> tuple[float, tuple[float, float]]:
    """Return a shape's area and the offset of its center of mass from its center, in pixels."""
    size = int(4 * radius) + 4
    cover = coverage(shape, radius, (size / 2, size / 2), size)
    x, y = _center_of_mass(cover)
    return float(cover.sum()), (x - size / 2, y - size / 2)


def _center_of_mass(cover: Float[np.ndarray, "H W"]) -> tuple[float, float]:
    """Return (x, y) in pixels from the left and upper edge."""
    y, x = np.asarray(ndimage.center_of_mass(cover), np.float64)
    return float(x) + 0.5, float(y) + 0.5


def _arrange(objects: list[SceneObject], background: str) -> Scene:
    if not objects:
        return Scene((), "", background)
    if len(objects) == 1:
        obj = objects[0]
        distances = {name: np.hypot(obj.x - x, obj.y - y) for name, (x, y) in POSITIONS.items()}
        return Scene((obj,), min(distances, key=distances.__getitem__), background)
    is_row = np.ptp([obj.x for obj in objects]) >= np.ptp([obj.y for obj in objects])
    ordered = sorted(objects, key=lambda obj: obj.x if is_row else obj.y)
    return Scene(tuple(ordered), ROW if is_row else COLUMN, background)

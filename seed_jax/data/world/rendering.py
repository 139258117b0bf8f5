"""Render scenes: antialiased shapes with shading on a textured, noisy background."""

import numpy as np
from jaxtyping import Bool, Float, UInt8

from seed_jax.data.world.scenes import BACKGROUNDS, COLORS, Scene

_OVERSAMPLING = 4  # subpixels along each axis
_NOISE = 5.0  # standard deviation, of 255
_TEXTURES = ("plain", "stripes", "speckles", "slope")
_STAR = np.exp(1j * (np.arange(10) * np.pi / 5 - np.pi / 2)) * np.where(np.arange(10) % 2, 0.45, 1.05)
_TRIANGLE = np.exp(1j * (np.arange(3) * 2 * np.pi / 3 - np.pi / 2)) * 1.15 + 0.15j


def render(scene: Scene, size: int, rng: np.random.Generator | None = None) -> UInt8[np.ndarray, "S S 3"]:
    """Return the image of a scene.

    Args:
        scene: what to render.
        size: height and width in pixels.
        rng: samples texture, shading and noise, which do not change the content; None leaves them out.
    """
    image = np.empty((size, size, 3))
    image[:] = BACKGROUNDS[scene.background]
    if rng is not None:
        image += _texture(size, rng)[..., None]
    for obj in scene.objects:
        window, cover = _window_coverage(obj.shape, obj.radius * size, (obj.x * size, obj.y * size), size)
        cover = cover[..., None]
        color = np.array(COLORS[obj.color], float)
        if rng is not None:
            brightness = rng.uniform(0.93, 1.05)
            shading = _slope(size, rng.uniform(0, 2 * np.pi), 10.0)[window]
            color = color * brightness + shading[..., None]
        image[window] = image[window] * (1 - cover) + color * cover
    if rng is not None:
        image += rng.normal(0, _NOISE, image.shape)
    return image.round().clip(0, 255).astype(np.uint8)


def coverage(shape: str, radius: float, center: tuple[float, float], size: int) -> Float[np.ndarray, "S S"]:
    """Return the fraction of each pixel that a shape covers; lengths are in pixels, `center` is (x, y)."""
    cover = np.zeros((size, size))
    window, window_cover = _window_coverage(shape, radius, center, size)
    cover[window] = window_cover
    return cover


def _window_coverage(
    shape: str, radius: float, center: tuple[float, float], size: int
) -> tuple[tuple[slice, slice], Float[np.ndarray, "H W"]]:
    """Return a window (rows, columns) that contains the shape, and the fraction of each of its pixels it covers."""
    columns, rows = (_bounds(middle, radius, size) for middle in center)
    x, y = (_subpixels(window, middle) / radius for window, middle in zip((columns, rows), center, strict=True))
    inside = _inside(shape, x[None], y[:, None])
    height, width = rows.stop - rows.start, columns.stop - columns.start
    return (rows, columns), inside.reshape(height, _OVERSAMPLING, width, _OVERSAMPLING).mean((1, 3))


def _bounds(middle: float, radius: float, size: int) -> slice:
    return slice(max(0, int(middle - 1.3 * radius)), max(0, min(size, int(middle + 1.3 * radius) + 1)))


def _subpixels(window: slice, middle: float) -> Float[np.ndarray, " N"]:
    """Return the coordinates of the subpixels' centers relative to `middle`, in pixels."""
    return (np.arange(window.start * _OVERSAMPLING, window.stop * _OVERSAMPLING) + 0.5) / _OVERSAMPLING - middle


def _inside(shape: str, x: Float[np.ndarray, "1 W"], y: Float[np.ndarray, "H 1"]) -> Bool[np.ndarray, "H W"]:
    """Return which points are inside a shape of radius 1; the radii are scaled so that shapes look equally large."""
    if shape == "circle":
        return np.hypot(x, y) <= 0.95
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= 0.85
    if shape == "diamond":
        return abs(x) * 1.35 + abs(y) <= 1.05
    if shape == "cross":
        return (np.minimum(abs(x), abs(y)) <= 0.3) & (np.maximum(abs(x), abs(y)) <= 0.98)
    return _inside_polygon(_STAR if shape == "star" else _TRIANGLE, x + 1j * y)


def _inside_polygon(corners: np.ndarray, points: np.ndarray) -> Bool[np.ndarray, "H W"]:
    """Even-odd rule; points and corners are complex numbers."""
    inside = np.zeros(points.shape, bool)
    for a, b in zip(corners, np.roll(corners, -1), strict=True):
        crosses = (a.imag > points.imag) != (b.imag > points.imag)
        height = b.imag - a.imag or 1.0
        inside ^= crosses & (points.real < (b.real - a.real) * (points.imag - a.imag) / height + a.real)
    return inside


def _texture(size: int, rng: np.random.Generator) -> Float[np.ndarray, "S S"]:
    """Sample a texture to add to the background."""
    kind, strength = rng.choice(_TEXTURES), rng.uniform(4, 12)
    if kind == "plain":
        return np.zeros((size, size))
    if kind == "speckles":
        return strength * np.where(rng.random((size, size)) < 0.08, -1.5, 0.0)
    slope = _slope(size, rng.uniform(0, 2 * np.pi), strength)
    return slope if kind == "slope" else strength * np.sin(slope / strength * rng.uniform(8, 25))


def _slope(size: int, angle: float, strength: float) -> Float[np.ndarray, "S S"]:
    """Return a plane that rises from -strength to strength along `angle` (radians)."""
    along = np.linspace(-1, 1, size)
    return strength * (np.cos(angle) * along[None] + np.sin(angle) * along[:, None])

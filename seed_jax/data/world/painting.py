"""How a scene looks: shapes with smooth edges, shading, a textured ground, noise."""

import numpy as np
from jaxtyping import Bool, Float, UInt8

from seed_jax.data.world.scenes import BACKGROUNDS, COLOURS, Scene

OVERSAMPLING = 4
_NOISE = 5.0  # standard deviation, of 255
_TEXTURES = ("plain", "stripes", "speckles", "slope")
_STAR = np.exp(1j * (np.arange(10) * np.pi / 5 - np.pi / 2)) * np.where(np.arange(10) % 2, 0.45, 1.05)
_TRIANGLE = np.exp(1j * (np.arange(3) * 2 * np.pi / 3 - np.pi / 2)) * 1.15 + 0.15j


def paint(scene: Scene, side: int, rng: np.random.Generator | None = None) -> UInt8[np.ndarray, "S S 3"]:
    """Return the picture of a scene.

    Args:
        side: in pixels.
        rng: draws texture, shading and noise, which do not change what is shown; without it there is none of them.
    """
    picture = np.empty((side, side, 3))
    picture[:] = BACKGROUNDS[scene.background]
    if rng is not None:
        picture += _texture(side, rng)[..., None]
    for thing in scene.things:
        cover = coverage(thing.shape, thing.radius * side, (thing.x * side, thing.y * side), side)[..., None]
        colour = np.array(COLOURS[thing.colour], float)
        if rng is not None:
            colour = colour * rng.uniform(0.93, 1.05) + _slope(side, rng.uniform(0, 2 * np.pi), 10.0)[..., None]
        picture = picture * (1 - cover) + colour * cover
    if rng is not None:
        picture += rng.normal(0, _NOISE, picture.shape)
    return picture.round().clip(0, 255).astype(np.uint8)


def coverage(
    shape: str, radius: float, centre: tuple[float, float], side: int, oversampling: int = OVERSAMPLING
) -> Float[np.ndarray, "S S"]:
    """Return the share of each pixel that a shape covers; lengths are in pixels, `centre` is (x, y)."""
    fine = (np.arange(side * oversampling) + 0.5) / oversampling
    x, y = (fine - centre[0]) / radius, (fine - centre[1]) / radius
    reach = [np.flatnonzero(np.abs(axis) <= 1.3) for axis in (x, y)]
    cover = np.zeros((side * oversampling,) * 2)
    if len(reach[0]) and len(reach[1]):
        part = np.s_[reach[1][0] : reach[1][-1] + 1, reach[0][0] : reach[0][-1] + 1]
        cover[part] = _inside(shape, x[None, part[1]], y[part[0], None])
    return cover.reshape(side, oversampling, side, oversampling).mean((1, 3))


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> Bool[np.ndarray, "H W"]:
    """Say which points are inside a shape of radius 1 (about: shapes of one size should look equally large)."""
    if shape == "circle":
        return np.hypot(x, y) <= 0.95
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= 0.85
    if shape == "diamond":
        return abs(x) * 1.35 + abs(y) <= 1.05
    if shape == "cross":
        return (np.minimum(abs(x), abs(y)) <= 0.3) & (np.maximum(abs(x), abs(y)) <= 0.98)
    return _in_polygon(_STAR if shape == "star" else _TRIANGLE, x + 1j * y)


def _in_polygon(corners: np.ndarray, points: np.ndarray) -> Bool[np.ndarray, "H W"]:
    inside = np.zeros(points.shape, bool)
    for a, b in zip(corners, np.roll(corners, -1), strict=True):
        crosses = (a.imag > points.imag) != (b.imag > points.imag)
        height = b.imag - a.imag or 1.0
        inside ^= crosses & (points.real < (b.real - a.real) * (points.imag - a.imag) / height + a.real)
    return inside


def _texture(side: int, rng: np.random.Generator) -> Float[np.ndarray, "S S"]:
    kind, strength = rng.choice(_TEXTURES), rng.uniform(4, 12)
    if kind == "plain":
        return np.zeros((side, side))
    if kind == "speckles":
        return strength * np.where(rng.random((side, side)) < 0.08, -1.5, 0.0)
    slope = _slope(side, rng.uniform(0, 2 * np.pi), strength)
    return slope if kind == "slope" else strength * np.sin(slope / strength * rng.uniform(8, 25))


def _slope(side: int, angle: float, strength: float) -> Float[np.ndarray, "S S"]:
    """Return a plane that rises from -strength to strength along `angle`."""
    along = np.linspace(-1, 1, side)
    return strength * (np.cos(angle) * along[None] + np.sin(angle) * along[:, None])

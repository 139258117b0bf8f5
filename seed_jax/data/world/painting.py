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
        part, cover = _covered(thing.shape, thing.radius * side, (thing.x * side, thing.y * side), side)
        cover, colour = cover[..., None], np.array(COLOURS[thing.colour], float)
        if rng is not None:
            colour = colour * rng.uniform(0.93, 1.05) + _slope(side, rng.uniform(0, 2 * np.pi), 10.0)[part][..., None]
        picture[part] = picture[part] * (1 - cover) + colour * cover
    if rng is not None:
        picture += rng.normal(0, _NOISE, picture.shape)
    return picture.round().clip(0, 255).astype(np.uint8)


def coverage(shape: str, radius: float, centre: tuple[float, float], side: int) -> Float[np.ndarray, "S S"]:
    """Return the share of each pixel that a shape covers; lengths are in pixels, `centre` is (x, y)."""
    cover = np.zeros((side, side))
    part, found = _covered(shape, radius, centre, side)
    cover[part] = found
    return cover


def _covered(
    shape: str, radius: float, centre: tuple[float, float], side: int
) -> tuple[tuple[slice, slice], Float[np.ndarray, "H W"]]:
    """Return the pixels that a shape may cover, and the share of each that it does."""
    x, y = (
        slice(max(0, int(middle - 1.3 * radius)), max(0, min(side, int(middle + 1.3 * radius) + 1)))
        for middle in centre
    )
    fine = [
        (np.arange(along.start * OVERSAMPLING, along.stop * OVERSAMPLING) + 0.5) / OVERSAMPLING - middle
        for along, middle in zip((x, y), centre, strict=True)
    ]
    inside = _inside(shape, fine[0][None] / radius, fine[1][:, None] / radius)
    height, width = y.stop - y.start, x.stop - x.start
    return (y, x), inside.reshape(height, OVERSAMPLING, width, OVERSAMPLING).mean((1, 3))


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

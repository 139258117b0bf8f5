"""Recolor images of the synthetic world with colors outside its palette, to learn shapes apart from colors."""

import numpy as np
from jaxtyping import Float, UInt8

from seed_jax.data.world.scenes import COLORS, Scene, SceneObject, is_held_out

_CONTRAST = 0.65  # keeps rotated colors roughly within 0 to 255
_SIMILAR = 80.0  # RGB distance below which a color looks like one of the palette
_MAX_ATTEMPTS = 8
_GRAY = 127.5


def recolor(
    image: UInt8[np.ndarray, "S S 3"], scene: Scene, rng: np.random.Generator
) -> UInt8[np.ndarray, "S S 3"] | None:
    """Rotate all colors about gray at random, which preserves their relative distances.

    Returns:
        The image, or None when every rotation tried makes an object look like a held-out combination.
    """
    for _ in range(_MAX_ATTEMPTS):
        rotation = _CONTRAST * np.linalg.qr(rng.standard_normal((3, 3)))[0]
        if not any(_looks_held_out(obj, rotation) for obj in scene.objects):
            return _rotate(image, rotation).round().clip(0, 255).astype(np.uint8)
    return None


def _rotate(colors: np.ndarray, rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "*S 3"]:
    return (np.asarray(colors, np.float32) - _GRAY) @ rotation.astype(np.float32) + _GRAY


def _looks_held_out(obj: SceneObject, rotation: Float[np.ndarray, "3 3"]) -> bool:
    color = _rotate(np.array(COLORS[obj.color]), rotation)
    return any(
        is_held_out(obj.size, name, obj.shape) and np.linalg.norm(color - value) < _SIMILAR
        for name, value in COLORS.items()
    )

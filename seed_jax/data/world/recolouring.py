"""Pictures of the drawn world in colours that have no names, so that shapes are learnt apart from colours."""

import numpy as np
from jaxtyping import Float, UInt8

from seed_jax.data.world.scenes import COLOURS, Scene, Thing, is_held

_CONTRAST = 0.65  # keeps turned colours within 0 to 255, about
_LIKE = 80.0  # distance in RGB below which a colour looks like a named one
_TRIES = 8


def recolour(
    picture: UInt8[np.ndarray, "S S 3"], scene: Scene, rng: np.random.Generator
) -> UInt8[np.ndarray, "S S 3"] | None:
    """Turn all colours about grey at random; differences between them stay as large as they were, relatively.

    Returns:
        The picture, or None where no turn was found after which no thing looks like a held combination.
    """
    for _ in range(_TRIES):
        turn = _CONTRAST * np.linalg.qr(rng.standard_normal((3, 3)))[0]
        if not any(_looks_held(thing, turn) for thing in scene.things):
            return _turned(picture, turn).round().clip(0, 255).astype(np.uint8)
    return None


def _turned(colours: np.ndarray, turn: Float[np.ndarray, "3 3"]) -> np.ndarray:
    return (np.asarray(colours, np.float32) - 127.5) @ turn.astype(np.float32) + 127.5


def _looks_held(thing: Thing, turn: Float[np.ndarray, "3 3"]) -> bool:
    colour = _turned(np.array(COLOURS[thing.colour]), turn)
    return any(
        is_held(thing.size, name, thing.shape) and np.linalg.norm(colour - value) < _LIKE
        for name, value in COLOURS.items()
    )

"""A drawn world in which the truth is known: scenes, how they look, and what can be said about them."""

from seed_jax.data.world.painting import paint
from seed_jax.data.world.scenes import BACKGROUNDS, COLOURS, HELD, SHAPES, SIZES, Scene, Thing, draw_scene, is_held
from seed_jax.data.world.tasks import TASKS, Sample, make_sample

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "HELD",
    "SHAPES",
    "SIZES",
    "TASKS",
    "Sample",
    "Scene",
    "Thing",
    "draw_scene",
    "is_held",
    "make_sample",
    "paint",
]

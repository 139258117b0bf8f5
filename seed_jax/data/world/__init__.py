"""The synthetic world: scenes with known content, rendered as images and described in text.

Every sample is a function of its task, seed and index, so data never has to be downloaded or stored:

    sample = make_sample("captions", seed=1, index=0)
    scene, caption = sample.items
    pixels = render(scene, size=64, rng=np.random.default_rng(0))  # uint8 [64, 64, 3]

`seed-jax data build --source world` writes such samples as shards.
"""

from seed_jax.data.world.rendering import render
from seed_jax.data.world.scenes import (
    BACKGROUNDS,
    COLORS,
    HELD_OUT,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    is_held_out,
    sample_scene,
)
from seed_jax.data.world.tasks import TASKS, WorldSample, make_sample

__all__ = [
    "BACKGROUNDS",
    "COLORS",
    "HELD_OUT",
    "SHAPES",
    "SIZES",
    "TASKS",
    "Scene",
    "SceneObject",
    "WorldSample",
    "is_held_out",
    "make_sample",
    "render",
    "sample_scene",
]

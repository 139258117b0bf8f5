"""Rendering: noise does not change the content, recolored images keep shapes and show no held-out combination."""

import numpy as np

from seed_jax.data.world import COLORS, is_held_out, render, sample_scene
from seed_jax.data.world.recoloring import recolor


def test_images_of_one_scene_differ_by_texture_and_noise_only():
    scene = sample_scene(np.random.default_rng(0))
    plain = render(scene, 64).astype(int)
    first, second = (render(scene, 64, np.random.default_rng(seed)).astype(int) for seed in (0, 1))
    assert (first != second).any()
    assert np.abs(first - plain).mean() < 15  # of 255
    np.testing.assert_array_equal(first, render(scene, 64, np.random.default_rng(0)))


def test_objects_cover_the_area_of_their_size():
    rng = np.random.default_rng(2)
    for _ in range(20):
        scene = sample_scene(rng, num_objects=1)
        image = render(scene, 96)
        area = (image != image[0, 0]).any(-1).mean()
        assert 0.8 * scene.objects[0].radius ** 2 < area < 4.5 * scene.objects[0].radius ** 2


def test_recoloring_keeps_shapes_and_avoids_held_out_combinations():
    rng = np.random.default_rng(0)
    for _ in range(30):
        scene = sample_scene(rng)
        image = render(scene, 48)
        recolored = recolor(image, scene, rng)
        assert recolored is not None
        # The background stays uniform, and objects stand out from it as before.
        background = (image == image[0, 0]).all(-1)
        np.testing.assert_array_equal(
            recolored[background], np.broadcast_to(recolored[0, 0], recolored[background].shape)
        )
        center = tuple(int(48 * position) for position in (scene.objects[0].y, scene.objects[0].x))
        contrast, recolored_contrast = (
            np.linalg.norm(pixels[center].astype(float) - pixels[0, 0]) for pixels in (image, recolored)
        )
        assert recolored_contrast > 0.5 * contrast
        for obj in scene.objects:
            color = recolored[int(48 * obj.y), int(48 * obj.x)].astype(float)
            nearest = min(COLORS, key=lambda name: np.linalg.norm(color - COLORS[name]))
            if np.linalg.norm(color - COLORS[nearest]) < 70:
                assert not is_held_out(obj.size, nearest, obj.shape)

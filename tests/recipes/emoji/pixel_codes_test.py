"""Codes of pixels: where the patches are, and that equal patches get equal codes."""

import numpy as np

from seed_jax.recipes.emoji.config import PixelCodesOptions
from seed_jax.recipes.emoji.pixel_codes import COLUMNS, ROWS, kmeans_codes, to_patches


def test_patches_are_in_reading_order():
    image = np.zeros((1, 16, 16, 3), np.uint8)
    image[0, 4:8, 2:4] = 255  # second row, second column
    patches = np.asarray(to_patches(image))
    assert patches.shape == (1, ROWS * COLUMNS, 4 * 2 * 3)
    assert np.flatnonzero(patches[0].max(-1) > 0).tolist() == [COLUMNS + 1]
    assert set(np.unique(patches)) == {-1.0, 1.0}


def test_equal_patches_get_equal_codes_in_any_image():
    rng = np.random.default_rng(0)
    grey = rng.choice([0, 100, 200], (12, ROWS, COLUMNS))
    images = np.repeat(np.repeat(grey, 4, 1), 2, 2)[..., None].repeat(3, -1).astype(np.uint8)
    codes = kmeans_codes(images, {"all": images, "two": images[:2]}, 3, PixelCodesOptions(vectors=100))
    np.testing.assert_array_equal(codes["two"], codes["all"][:2])
    code_of = {level: set(codes["all"][grey.reshape(12, -1) == level]) for level in (0, 100, 200)}
    assert all(len(found) == 1 for found in code_of.values())

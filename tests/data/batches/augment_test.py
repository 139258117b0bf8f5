"""Random crops: within the image, spread as they should be, and the same for the same generator."""

import numpy as np
import pytest
from PIL import Image

from seed_jax.data.batches.augment import Augmentation, augment, random_box
from seed_jax.errors import UserError


def boxes(width, height, count=2000):
    rng = np.random.default_rng(0)
    return np.array([random_box(width, height, Augmentation(), rng) for _ in range(count)])


def test_crops_keep_area_and_ratio_and_stay_inside():
    found = boxes(640, 480)
    left, top, right, bottom = found.T
    assert left.min() >= 0
    assert top.min() >= 0
    assert right.max() <= 640
    assert bottom.max() <= 480
    width, height = right - left, bottom - top
    share, ratio = width * height / (640 * 480), width / height
    # Sides are rounded to whole pixels, of some 350: 0.3 %.
    assert share.min() > 0.5 * 0.997
    assert ratio.min() > 3 / 4 * 0.997
    assert ratio.max() < 4 / 3 * 1.003


def test_areas_and_positions_are_uniform():
    left, top, right, bottom = boxes(1000, 1000).T
    share = (right - left) * (bottom - top) / 1e6
    # Crops that do not fit are drawn again, so large ones are rarer than uniform: mean below 0.75, well above 0.5.
    assert 0.6 < share.mean() < 0.75
    assert abs((left / np.maximum(1000 - (right - left), 1)).mean() - 0.5) < 0.03  # uniform: 0.29 / sqrt(2000) = 0.0065


@pytest.mark.parametrize(("size", "expected"), [((1000, 10), (493, 0, 506, 10)), ((10, 1000), (0, 493, 10, 506))])
def test_a_strip_gets_its_central_crop(size, expected):
    assert random_box(*size, Augmentation(scale=(1.0, 1.0)), np.random.default_rng(0)) == expected


def test_same_generator_same_pixels_and_half_are_flipped():
    ramp = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (100, 1, 3)))
    first, again = (augment(ramp, 32, Augmentation(), np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    mirrored = [
        x[16, 0, 0] > x[16, -1, 0]
        for x in (augment(ramp, 32, Augmentation(), np.random.default_rng(seed)) for seed in range(200))
    ]
    assert 70 < sum(mirrored) < 130  # half of 200; 4 standard deviations of 7


def test_whole_image_without_flip_is_a_plain_bicubic_resize():
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    only = Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(augment(image, 32, only, np.random.default_rng(0)), expected)


@pytest.mark.parametrize("bad", [{"scale": (0.0, 1.0)}, {"scale": (0.9, 0.5)}, {"ratio": (2.0, 1.0)}, {"flip": 1.5}])
def test_settings_are_checked(bad):
    with pytest.raises(UserError, match="expected"):
        Augmentation(**bad)

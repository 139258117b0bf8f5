"""Random crops and flips for tokenizer training (spec A.1: `blip2_image_train`), computed with Pillow."""

import dataclasses
import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from seed_jax import images
from seed_jax.errors import UserError

_ATTEMPTS = 10


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Parameters of random resized crops and horizontal flips.

    Attributes:
        scale: minimum and maximum fraction of the image's area that a crop keeps.
        ratio: minimum and maximum aspect ratio (width / height) of a crop.
        flip: probability of a horizontal flip.
    """

    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self):
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"Crop scale is {self.scale}, expected two increasing fractions of the area, up to 1.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(f"Crop ratio is {self.ratio}, expected two increasing positive numbers.")
        if not 0 <= self.flip <= 1:
            raise UserError(f"Flip probability is {self.flip}, expected 0 to 1.")


def random_box(
    width: int, height: int, augmentation: Augmentation, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw a crop box (left, top, right, bottom) in pixels.

    The area is uniform, the aspect ratio log-uniform, the position uniform. If none of ten crops fits into the image,
    return the largest central crop with an allowed aspect ratio.
    """
    low, high = (math.log(ratio) for ratio in augmentation.ratio)
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(*augmentation.scale)
        ratio = math.exp(rng.uniform(low, high))
        w = round(math.sqrt(area * ratio))
        h = round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(rng.integers(width - w + 1))
            top = int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    return _central_box(width, height, augmentation.ratio)


def _central_box(width: int, height: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    w = width
    h = height
    if width < ratio[0] * height:
        h = min(height, round(width / ratio[0]))
    elif width > ratio[1] * height:
        w = min(width, round(height * ratio[1]))
    left = (width - w) // 2
    top = (height - h) // 2
    return left, top, left + w, top + h


def augment(
    image: Image.Image, size: int, augmentation: Augmentation, rng: np.random.Generator
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Crop an image, resize it (bicubic, antialiased) to [size, size, 3], and flip it with some probability."""
    pixels = images.resize(image.crop(random_box(*image.size, augmentation, rng)), size, "bicubic")
    return np.ascontiguousarray(pixels[:, ::-1]) if rng.random() < augmentation.flip else pixels

"""Random crops and flips of the tokenizer's training (spec A.1: `blip2_image_train`), as Pillow makes them."""

import dataclasses
import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from seed_jax.errors import UserError

_ATTEMPTS = 10


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How pictures are varied.

    Attributes:
        scale: least and largest share of the picture's area that a crop keeps.
        ratio: narrowest and widest crop, width / height.
        flip: probability of mirroring left and right.
    """

    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self):
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"Crops keep {self.scale} of a picture's area, expected two rising shares up to 1.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(f"Crops have ratios {self.ratio}, expected two rising positive numbers.")
        if not 0 <= self.flip <= 1:
            raise UserError(f"Pictures are flipped with probability {self.flip}, expected 0 to 1.")


def random_box(
    width: int, height: int, augmentation: Augmentation, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw a crop (left, top, right, bottom): area uniform, ratio uniform in its logarithm, place uniform.

    Where no crop of ten fits into the picture, it is the largest central one with an allowed ratio.
    """
    low, high = (math.log(ratio) for ratio in augmentation.ratio)
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(*augmentation.scale)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    return _central_box(width, height, augmentation.ratio)


def _central_box(width: int, height: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    w, h = width, height
    if width < ratio[0] * height:
        h = min(height, round(width / ratio[0]))
    elif width > ratio[1] * height:
        w = min(width, round(height * ratio[1]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def augment(
    image: Image.Image, size: int, augmentation: Augmentation, rng: np.random.Generator
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Crop, resize (bicubic, antialiased) and perhaps mirror a picture."""
    cropped = image.crop(random_box(*image.size, augmentation, rng)).resize((size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(cropped)
    return np.ascontiguousarray(pixels[:, ::-1]) if rng.random() < augmentation.flip else pixels

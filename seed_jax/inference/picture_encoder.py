"""An image tokenizer as `data.build` wants it."""

import dataclasses
from typing import Any

import jax
import numpy as np

from seed_jax.inference.image_tokenizer import ImageTokenizer


class PictureEncoder:
    """What a `data.encoding.Encoder` is: fingerprint, preprocessing, batch size; prepare one picture, encode many."""

    def __init__(self, tokenizer: ImageTokenizer):
        self.fingerprint, self.batch_size = tokenizer.fingerprint, tokenizer.batch_size
        size = {"image_size": tokenizer.config.image_size}
        self.preprocessing = size | dataclasses.asdict(tokenizer.preprocessing)
        self.prepare, self._start = tokenizer.pixels, tokenizer.start_pixels

    def encode(self, pictures: np.ndarray) -> "Codes":
        """Give a batch to the device and return at once."""
        return Codes(self._start(pictures), len(pictures))


class Codes:
    """Codes that the device is computing; `np.asarray` waits for them."""

    def __init__(self, batch: jax.Array, count: int):
        self._batch, self._count = batch, count

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._batch, dtype)[: self._count]

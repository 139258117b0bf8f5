"""Pictures as a decoder is trained with them: as its tokenizer sees them, and as they should be drawn."""

import dataclasses
from typing import Any

import numpy as np

from seed_jax import images
from seed_jax.data.records import Record
from seed_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PictureReader:
    """Turn a record's first picture into a row: `image` uint8 [S, S, 3] and `target` uint8 [D, D, 3].

    Attributes:
        image_size, interpolation: as the tokenizer takes pictures.
        target_size: side of what is drawn.
        keep_ratio: crop the centre, of both alike, instead of squashing.
        flip: probability of mirroring both left and right.
    """

    image_size: int
    target_size: int
    interpolation: str = "bilinear"
    keep_ratio: bool = False
    flip: float = 0.0

    def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        picture = next((item for item in record.items if isinstance(item, bytes)), None)
        if picture is None:
            raise UserError("it holds no picture: build the shards with pictures as they are (without --model).")
        loaded = images.load(picture)
        row = {
            "image": images.resize(loaded, self.image_size, self.interpolation, self.keep_ratio),
            "target": images.resize(loaded, self.target_size, "bicubic", self.keep_ratio),
        }
        if rng.random() < self.flip:
            row = {name: np.ascontiguousarray(pixels[:, ::-1]) for name, pixels in row.items()}
        return row

    def describe(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def row_spec(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """Return name -> (shape, dtype) of a row."""
        return {
            "image": ((self.image_size, self.image_size, 3), np.uint8),
            "target": ((self.target_size, self.target_size, 3), np.uint8),
        }

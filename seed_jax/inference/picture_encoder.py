"""An image tokenizer as `data.build` wants it."""

import dataclasses

from seed_jax.inference.image_tokenizer import ImageTokenizer


class PictureEncoder:
    """What a `data.pictures.Encoder` is: fingerprint, preprocessing, batch size; prepare one picture, encode many."""

    def __init__(self, tokenizer: ImageTokenizer):
        self.fingerprint, self.batch_size = tokenizer.fingerprint, tokenizer.batch_size
        size = {"image_size": tokenizer.config.image_size}
        self.preprocessing = size | dataclasses.asdict(tokenizer.preprocessing)
        self.prepare = tokenizer.pixels
        self.encode = tokenizer.encode_pixels

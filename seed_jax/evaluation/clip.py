"""CLIP's two towers for similarity scores, from the folder of a Hugging Face CLIP model."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from PIL import Image

from seed_jax import images as image_files
from seed_jax.convert.tokenizer import clip as clip_import
from seed_jax.data.text.clip import ClipVocabulary
from seed_jax.errors import UserError
from seed_jax.models.clip.text import ClipText
from seed_jax.models.tokenizer.vit import Vit

_BATCH = 16
_PROJECTION = "text_projection.weight"


class ClipModel:
    """CLIP image and text embeddings, not normalized.

    Images are resized as Hugging Face's processor does: shorter side bicubic to the input size, centre crop with the
    offset rounded down, CLIP's mean and standard deviation.

    Args:
        directory: config.json, weights, and for texts vocab.json and merges.txt.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self._config, self._params = clip_import.import_vision(directory)
        model = Vit(self._config)
        self._embed = jax.jit(
            lambda params, pixels: model.apply({"params": params}, image_files.normalize(pixels), method="embed")
        )

    @property
    def reads_text(self) -> bool:
        """Whether the folder has a text tower with its vocabulary."""
        return (self.directory / "vocab.json").is_file()

    def embed_images(self, images: Sequence[Image.Image]) -> Float[np.ndarray, "N E"]:
        """Return the embeddings of RGB images."""
        rows = [self._pixels(image) for image in images]
        return self._batched(np.stack(rows), lambda batch: self._embed(self._params, batch))

    def embed_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "N E"]:
        """Return the embeddings of texts.

        Raises:
            UserError: the folder holds no text tower or no vocabulary.
        """
        vocabulary, embed = self._text_tower
        ids = np.array([vocabulary.encode(text) for text in texts], np.int32)
        return self._batched(ids, embed)

    @functools.cached_property
    def _text_tower(self) -> tuple[ClipVocabulary, Callable[[np.ndarray], np.ndarray]]:
        config, params = clip_import.import_text(self.directory)
        tensors = clip_import.open_directory(self.directory)
        if _PROJECTION not in tensors:
            raise UserError(f"{self.directory} has no tensor {_PROJECTION}: give the folder of a whole CLIP model.")
        projection = np.asarray(tensors[_PROJECTION].read(), np.float32).T
        vocabulary = ClipVocabulary.load(self.directory)
        model, end = ClipText(config), vocabulary.ids[vocabulary.eos]

        encode = jax.jit(lambda params, ids: model.apply({"params": params}, ids))

        def embed(ids: np.ndarray) -> np.ndarray:
            states = np.asarray(encode(params, ids))
            last = states[np.arange(len(ids)), (ids == end).argmax(-1)]  # the state of the first EOS
            return last @ projection

        return vocabulary, embed

    def _pixels(self, image: Image.Image) -> np.ndarray:
        size = self._config.image_size
        width, height = image.size
        short = min(width, height)
        width, height = size * width // short, size * height // short
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (height - size) // 2
        return np.asarray(resized.crop((left, top, left + size, top + size)))

    def _batched(self, rows: np.ndarray, embed: Callable[[np.ndarray], Any]) -> np.ndarray:
        """Embed rows in batches of one size, the last one padded, so that one program serves all."""
        parts = []
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            padded = np.concatenate([batch, np.repeat(batch[-1:], _BATCH - len(batch), 0)])
            parts.append(np.asarray(embed(padded), np.float32)[: len(batch)])
        return np.concatenate(parts)


def embed_directory(clip: ClipModel, directory: Path) -> Float[np.ndarray, "N E"]:
    """Return the embeddings of the centre squares of a directory's images, without its subdirectories, as CMMD does.

    Raises:
        UserError: there are no images, or one is unreadable.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory: give a directory of images.")
    paths = sorted(path for path in directory.iterdir() if path.suffix.lower() in image_files.EXTENSIONS)
    if not paths:
        raise UserError(f"{directory} holds no images ({', '.join(image_files.EXTENSIONS)}): give another directory.")
    parts = [
        clip.embed_images([_centre_square(image_files.load(path)) for path in paths[start : start + _BATCH]])
        for start in range(0, len(paths), _BATCH)
    ]
    return np.concatenate(parts)


def _centre_square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))

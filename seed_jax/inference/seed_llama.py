"""SEED-LLaMA as a whole: pictures and words in, words and pictures out."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from seed_jax import images
from seed_jax.errors import UserError
from seed_jax.inference.chat.prompts import BASE, USER, Turn, build_prompt, interleave
from seed_jax.inference.drawing.drawer import Drawer
from seed_jax.inference.drawing.request import DrawOptions
from seed_jax.inference.generation.generator import Generation, Generator
from seed_jax.inference.generation.sampling_params import Settings
from seed_jax.inference.generation.segments import ImageSegment, Segment
from seed_jax.inference.image_tokenizer import ImageTokenizer
from seed_jax.inference.weight_loading import LanguageModel, open_language_model
from seed_jax.precision import Precision

LARGEST_BATCH = 8  # pictures that are encoded at a time, as the frames of a video
Picture = Image.Image | str | Path | bytes


@dataclasses.dataclass(frozen=True)
class Parts:
    """Where the parts of a SEED-LLaMA lie and in which formats they are loaded.

    Attributes:
        tokenizer: by default the one that the language model names.
        decoder: draws the images of answers; needed for nothing else.
        dtype: by default bfloat16, on a CPU float32.
        quantize: "int8" or "int4" rounds the language model's kernels; `quantize_vit` those of the tokenizer's ViT.
    """

    model: Path
    tokenizer: Path | None = None
    decoder: Path | None = None
    dtype: str | None = None
    quantize: str | None = None
    quantize_vit: str | None = None

    @property
    def precision(self) -> Precision:
        name = self.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
        return Precision(name, name)


class SeedLlama:
    """A language model with its image tokenizer and decoder, which are loaded when they are first needed.

    Args:
        open_tokenizer: loads the image tokenizer for batches of a size; `open_drawer` the decoder.
        style: of prompts, see `chat.STYLES`.
    """

    def __init__(
        self,
        generator: Generator,
        open_tokenizer: Callable[[int], ImageTokenizer],
        open_drawer: Callable[[], Drawer],
        style: str = BASE,
    ):
        self.generator, self.style = generator, style
        self._open_tokenizer, self._open_drawer = open_tokenizer, open_drawer
        self._tokenizer: ImageTokenizer | None = None

    @classmethod
    def load(cls, model: str | Path, *, style: str = BASE, **parts) -> "SeedLlama":
        """Read a model directory or workdir; `parts` are the fields of `Parts`."""
        named = {name: Path(parts.pop(name)) for name in ("tokenizer", "decoder") if parts.get(name)}
        return cls.of(Parts(Path(model), **named, **parts), style)

    @classmethod
    def of(cls, parts: Parts, style: str = BASE) -> "SeedLlama":
        """Load what `parts` name."""
        found, precision = open_language_model(parts.model), parts.precision
        generator = Generator(
            found.config, found.params, found.vocabulary, precision=precision, quantize=parts.quantize
        )

        def open_drawer() -> Drawer:
            if parts.decoder is None:
                raise UserError("No decoder is given to draw images with: name its model directory (--decoder).")
            return Drawer.load(parts.decoder, dtype=precision.compute)

        return cls(generator, lambda size: _open_tokenizer(parts, found, size), open_drawer, style)

    def image_tokenizer(self, pictures: int = 1) -> ImageTokenizer:
        """Return the image tokenizer; the first call says for batches of how many pictures."""
        self._tokenizer = self._tokenizer or self._open_tokenizer(min(max(pictures, 1), LARGEST_BATCH))
        return self._tokenizer

    @functools.cached_property
    def drawer(self) -> Drawer:
        return self._open_drawer()

    def encode(self, pictures: Sequence[Picture]) -> list[tuple[int, ...]]:
        """Return the codes of pictures: files, their bytes, or PIL's."""
        if not pictures:
            return []
        loaded = [picture if isinstance(picture, Image.Image) else images.load(picture) for picture in pictures]
        return [tuple(row) for row in self.image_tokenizer(len(loaded)).encode(loaded).tolist()]

    def prompt(self, text: str, pictures: Sequence[Picture] = ()) -> list[int]:
        """Return the ids of one turn; the pictures stand at `<image>` placeholders or before the text."""
        turn = Turn(USER, interleave(text, self.encode(pictures)))
        return build_prompt([turn], self.style, self.generator.vocabulary)

    def ask(
        self, text: str, pictures: Sequence[Picture] = (), settings: Settings | None = None, **changes
    ) -> Generation:
        """Answer one turn; `changes` are fields of `Settings` by name."""
        (answer,) = self.generator.generate([self.prompt(text, pictures)], settings, **changes)
        return answer

    def draw(
        self, segments: Sequence[Segment], seed: int = 0, options: DrawOptions | None = None, *, progress: bool = False
    ) -> list[Image.Image]:
        """Draw the images among segments, each from a seed of its own: `seed`, `seed` + 1 and so on."""
        codes = [segment.codes for segment in segments if isinstance(segment, ImageSegment)]
        if not codes:
            return []
        drawer = self.drawer  # what is missing is said before anything is computed
        embeddings = self.image_tokenizer().embed_codes(np.asarray(codes, np.int32))
        seeds = [(seed + number) % 2**32 for number in range(len(codes))]
        drawn = drawer.draw(embeddings, seeds, options, batch_size=1, progress=progress)
        return [Image.fromarray(picture) for picture in drawn]


def _open_tokenizer(parts: Parts, model: LanguageModel, batch_size: int) -> ImageTokenizer:
    directory, known = parts.tokenizer or model.image_tokenizer, model.vocabulary.num_codes
    if directory is None:
        raise UserError(f"{parts.model} names no image tokenizer: give one with --tokenizer to use pictures.")
    tokenizer = ImageTokenizer.load(directory, batch_size=batch_size, quantize=parts.quantize_vit)
    if tokenizer.config.num_codes != known:
        raise UserError(
            f"The image tokenizer {directory} has {tokenizer.config.num_codes} codes but the vocabulary of "
            f"{parts.model} has {known}: use the image tokenizer that the model was trained with."
        )
    return tokenizer

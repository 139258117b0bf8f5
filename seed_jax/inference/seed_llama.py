"""SEED-LLaMA as a whole: text and images in, text and images out."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from seed_jax.errors import UserError
from seed_jax.images import ImageInput, as_list, load
from seed_jax.inference.chat.prompts import (
    BASE_STYLE,
    SEED1_STYLE,
    USER,
    Message,
    build_prompt,
    check_style,
    interleave,
)
from seed_jax.inference.drawing.drawer import Drawer
from seed_jax.inference.drawing.request import DrawOptions
from seed_jax.inference.generation.generator import Generator
from seed_jax.inference.generation.sampling_params import MAX_SEED, SamplingParams
from seed_jax.inference.generation.segments import Generation, ImageSegment, Segment
from seed_jax.inference.image_tokenizer import ImageTokenizer
from seed_jax.inference.language_model import open_language_model, read_draft_codes, read_references
from seed_jax.precision import Precision

MAX_IMAGE_BATCH = 8  # images that are encoded at a time, such as the frames of a video


@dataclasses.dataclass(frozen=True)
class LoadConfig:
    """Which models to load, and how.

    Attributes:
        model: directory of the language model: model directory, bundle or training workdir.
        tokenizer: directory of the image tokenizer; by default the one that the model's config.json names.
        decoder: directory of the image decoder, needed for drawing only; by default the one that config.json names.
        style: prompt style ("vicuna", "llama2", "base" or "seed1"); by default that of config.json, else "base".
        dtype: compute dtype; by default bfloat16, on a CPU float32.
        quantize: "int8" or "int4" quantizes the language model's kernels.
        quantize_vit: "int8" or "int4" quantizes the kernels of the image tokenizer's ViT.
        draft_codes: first draft of parallel decoding, a file of `seed-jax data draft-codes`; by default
            `draft_codes.json` beside the config.json of the model, if there is one.
        use_decoder: False leaves images as codes, whatever decoder config.json names.
    """

    model: Path
    tokenizer: Path | None = None
    decoder: Path | None = None
    style: str | None = None
    dtype: str | None = None
    quantize: str | None = None
    quantize_vit: str | None = None
    draft_codes: Path | None = None
    use_decoder: bool = True

    def resolve(self) -> "LoadConfig":
        """Fill in what the model's config.json names, and replace a bundle by its language model; reads nothing else.

        Raises:
            UserError: the directory is not a language model's, or the prompt style is unknown.
        """
        references = read_references(self.model)
        style = self.style or references.prompt_style or BASE_STYLE
        check_style(style)
        return dataclasses.replace(
            self,
            model=references.language_model,
            tokenizer=self.tokenizer or references.image_tokenizer,
            decoder=(self.decoder or references.decoder) if self.use_decoder else None,
            style=style,
        )

    @property
    def precision(self) -> Precision:
        name = self.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
        return Precision(name, name)


class SeedLlama:
    """A language model with its image tokenizer and decoder, which are loaded when they are first needed.

    Example:
        model = SeedLlama.load("models/seed_llama_8b", decoder="models/unclip", quantize="int8")
        answer = model.ask("Draw this cat with a hat.", ["cat.jpg"], temperature=0.7)
        print([segment for segment in answer.segments])  # text, or an image as its 32 codes
        model.draw(answer.segments)[0].save("hat.png")

    Args:
        generator: the language model.
        open_tokenizer: loads the image tokenizer for a batch size.
        open_drawer: loads the decoder.
        style: prompt style: "vicuna", "llama2", "base" or "seed1".
    """

    def __init__(
        self,
        generator: Generator,
        open_tokenizer: Callable[[int], ImageTokenizer],
        open_drawer: Callable[[], Drawer],
        style: str = BASE_STYLE,
    ):
        check_style(style)
        self.generator = generator
        self.style = style
        self._open_tokenizer = open_tokenizer
        self._open_drawer = open_drawer
        self._tokenizer: ImageTokenizer | None = None

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        tokenizer: str | Path | None = None,
        decoder: str | Path | None = None,
        style: str | None = None,
        dtype: str | None = None,
        quantize: str | None = None,
        quantize_vit: str | None = None,
    ) -> "SeedLlama":
        """Read a model directory, a bundle or a training workdir; arguments as in `LoadConfig`.

        Raises:
            UserError: the directory is not a language model's, or cannot be read.
        """
        config = LoadConfig(
            model=Path(model),
            tokenizer=Path(tokenizer) if tokenizer else None,
            decoder=Path(decoder) if decoder else None,
            style=style,
            dtype=dtype,
            quantize=quantize,
            quantize_vit=quantize_vit,
        )
        return cls.from_config(config)

    @classmethod
    def from_config(cls, config: LoadConfig, mesh: Mesh | None = None) -> "SeedLlama":
        """Load what a `LoadConfig` names.

        Args:
            config: the models.
            mesh: shards batches and weights of language model and image tokenizer; by default one device has all.
        """
        config = config.resolve()
        loaded, precision = open_language_model(config.model), config.precision
        if config.style == SEED1_STYLE and loaded.config.num_input_tokens == loaded.config.vocab_size:
            raise UserError(
                f"Prompt style {SEED1_STYLE!r} shows images as code vectors, which {config.model} does not read: it is "
                "for models of configs/pretrain_opt.py; use another --style."
            )
        generator = Generator(
            loaded.config,
            loaded.params,
            loaded.vocabulary,
            precision=precision,
            quantize=config.quantize,
            draft_codes=read_draft_codes(config.model, config.draft_codes),
            mesh=mesh,
        )

        def open_tokenizer(batch_size: int) -> ImageTokenizer:
            return open_image_tokenizer(config, loaded.vocabulary.num_codes, batch_size, mesh)

        def open_drawer() -> Drawer:
            if config.decoder is None:
                raise UserError(
                    f"{config.model} names no image decoder: give its model directory (--decoder) to draw images."
                )
            logging.info("loading the image decoder %s and compiling it ...", config.decoder)
            return Drawer.load(config.decoder, dtype=precision.compute)

        return cls(generator, open_tokenizer, open_drawer, config.style or BASE_STYLE)

    def image_tokenizer(self, num_images: int = 1) -> ImageTokenizer:
        """Return the image tokenizer; the first call determines its batch size from `num_images`."""
        self._tokenizer = self._tokenizer or self._open_tokenizer(min(max(num_images, 1), MAX_IMAGE_BATCH))
        return self._tokenizer

    @functools.cached_property
    def drawer(self) -> Drawer:
        return self._open_drawer()

    def encode(self, images: ImageInput | Sequence[ImageInput]) -> list[tuple[int, ...]]:
        """Return the codes of images.

        Args:
            images: one image or several: paths, encoded bytes, binary files, Pillow images of any mode, or arrays (see
                `seed_jax.images.load`).
        """
        loaded = [load(image) for image in as_list(images)]
        if not loaded:
            return []
        return [tuple(codes) for codes in self.image_tokenizer(len(loaded)).encode(loaded).tolist()]

    def prompt(self, text: str, images: ImageInput | Sequence[ImageInput] = ()) -> list[int]:
        """Return the token ids of one user message; images replace `<image>` placeholders or precede the text."""
        message = Message(USER, interleave(text, self.encode(images)))
        return build_prompt([message], self.style, self.generator.vocabulary)

    def ask(
        self,
        text: str,
        images: ImageInput | Sequence[ImageInput] = (),
        sampling_params: SamplingParams | None = None,
        **changes,
    ) -> Generation:
        """Answer one user message.

        Args:
            text: the message; `<image>` marks the position of each image.
            images: one image or several, as in `encode`.
            sampling_params: decoding options.
            changes: fields of `SamplingParams` by name, which replace those of `sampling_params`.
        """
        (answer,) = self.generator.generate([self.prompt(text, images)], sampling_params, **changes)
        return answer

    def draw(
        self, segments: Sequence[Segment], seed: int = 0, options: DrawOptions | None = None, *, progress: bool = False
    ) -> list[Image.Image]:
        """Draw the images among the segments of an answer.

        Args:
            segments: segments of an answer; text is ignored.
            seed: seed of the first image; the others use `seed` + 1, `seed` + 2 and so on.
            options: options of the diffusion.
            progress: show a progress bar.

        Raises:
            UserError: no decoder or no image tokenizer is known.
        """
        codes = [segment.codes for segment in segments if isinstance(segment, ImageSegment)]
        if not codes:
            return []
        drawer = self.drawer  # a missing decoder is reported before anything is computed
        embeddings = self.image_tokenizer().embed_codes(np.asarray(codes, np.int32))
        seeds = [(seed + number) % (MAX_SEED + 1) for number in range(len(codes))]
        drawn = drawer.draw(embeddings, seeds, options, batch_size=1, progress=progress)
        return [Image.fromarray(pixels) for pixels in drawn]


def open_image_tokenizer(
    config: LoadConfig, num_codes: int, batch_size: int, mesh: Mesh | None = None
) -> ImageTokenizer:
    """Load the image tokenizer of a language model whose vocabulary has `num_codes` codes."""
    if config.tokenizer is None:
        raise UserError(f"{config.model} names no image tokenizer: give one with --tokenizer to use images.")
    logging.info("loading the image tokenizer %s and compiling it ...", config.tokenizer)
    tokenizer = ImageTokenizer.load(config.tokenizer, batch_size=batch_size, quantize=config.quantize_vit, mesh=mesh)
    if tokenizer.config.num_codes != num_codes:
        raise UserError(
            f"The image tokenizer {config.tokenizer} has {tokenizer.config.num_codes} codes but the vocabulary of "
            f"{config.model} has {num_codes}: use the image tokenizer that the model was trained with."
        )
    return tokenizer

"""The trained models of a recipe as one pipeline: from images and text to images and text."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from seed_jax import images
from seed_jax.convert.tokenizer import clip
from seed_jax.data.templates.phrases import Phrases
from seed_jax.inference.chat.prompts import SEED1_STYLE, USER, Message, build_prompt
from seed_jax.inference.drawing.drawer import Drawer
from seed_jax.inference.drawing.request import DrawOptions
from seed_jax.inference.generation.generator import Generator
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.generation.segments import ImageSegment, Segment, TextSegment
from seed_jax.inference.image_tokenizer import ImageTokenizer
from seed_jax.models.tokenizer.vit import Vit

SEED = 1_000_003  # of the measured samples; no training uses it
_DRAW_OPTIONS = DrawOptions(sampler="dpmpp", steps=8, guidance_scale=2.0)
CANDIDATES = 4  # images generated from the same codes, of which one is kept
TEXT = SamplingParams(mode="text", max_new_tokens=48)
ONE_IMAGE = SamplingParams(num_images=1, max_new_tokens=64)
WITHOUT_GRAMMAR = SamplingParams(mode="none", max_new_tokens=64)


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
    """The trained models.

    Attributes:
        tokenizer: images to codes.
        drawer: codes to images.
        generator: the language model, or None where the recipe ended before it.
        image_size: height and width in pixels.
        batch_size: of every call; smaller batches are padded, so that each program is compiled once.
        style: prompt style of the language model: "vicuna", or "seed1", which knows no other request than an image to
            caption or a caption to draw.
        similarity: of images, under a vision tower.
    """

    tokenizer: ImageTokenizer
    drawer: Drawer
    generator: Generator | None
    image_size: int
    batch_size: int
    similarity: "Similarity"
    style: str = "vicuna"

    @classmethod
    def load(cls, workdir: Path, image_size: int, batch_size: int, vision: Path) -> "Pipeline":
        """Load the models from a recipe's workdir, and a vision tower that compares images."""
        tokenizer = ImageTokenizer.load(workdir / "codebook", batch_size=batch_size)
        styles = {"sft": "vicuna", "pretrain_opt": SEED1_STYLE}
        trained = next((name for name in styles if (workdir / name).is_dir()), None)
        generator = Generator.load(workdir / trained) if trained else None
        drawer, style = Drawer.load(workdir / "decoder"), styles[trained or "sft"]
        return cls(tokenizer, drawer, generator, image_size, batch_size, Similarity(vision), style)

    @property
    def follows_instructions(self) -> bool:
        """Whether the language model answers questions and edits images."""
        return self.generator is not None and self.style != SEED1_STYLE

    def drawing_prompt(self, caption: str) -> list[TextSegment]:
        """Return the request to draw a caption."""
        return [TextSegment(caption)] if self.style == SEED1_STYLE else drawing_prompt(caption)

    def tokenize(self, pixels: Sequence[UInt8[np.ndarray, "S S 3"]]) -> Int[np.ndarray, "N Q"]:
        """Return the codes of images."""
        return self.tokenizer.encode([Image.fromarray(image) for image in pixels])

    def draw(
        self, codes: Int[np.ndarray, "N Q"], seeds: Sequence[int], candidates: int = CANDIDATES
    ) -> UInt8[np.ndarray, "N S S 3"]:
        """Generate the images of codes with the diffusion decoder.

        Args:
            codes: of the images.
            seeds: one per image.
            candidates: images generated for each seed. The tokenizer encodes them again, and the one whose codes agree
                best with the wanted ones is returned: no other network judges.
        """
        wanted = np.repeat(codes, candidates, axis=0)
        indices = self._padded_indices(len(wanted))
        embeddings = np.asarray(self.tokenizer.embed_codes(wanted))[indices]
        noise = [seeds[index // candidates] * candidates + index % candidates for index in indices]
        drawn = self.drawer.draw(embeddings, noise, _DRAW_OPTIONS, batch_size=self.batch_size)[: len(wanted)]
        if candidates == 1:
            return drawn
        agreement = (self.tokenize(list(drawn)) == wanted).mean(-1).reshape(-1, candidates)
        return drawn.reshape(-1, candidates, *drawn.shape[1:])[np.arange(len(codes)), agreement.argmax(-1)]

    def generate_texts(self, prompts: Sequence[Sequence[Segment]], params: SamplingParams = TEXT) -> list[str]:
        """Return one text for each prompt."""
        answers = self._generate(prompts, params)
        return [" ".join(part.text for part in answer if isinstance(part, TextSegment)).strip() for answer in answers]

    def generate_codes(
        self, prompts: Sequence[Sequence[Segment]], params: SamplingParams = ONE_IMAGE
    ) -> Int[np.ndarray, "N Q"]:
        """Return the codes of one image for each prompt; the grammar enforces that there is exactly one."""
        codes, _ = self._codes(self._generate(prompts, params))
        return codes

    def generate_codes_without_grammar(
        self, prompts: Sequence[Sequence[Segment]], params: SamplingParams = WITHOUT_GRAMMAR
    ) -> tuple[Int[np.ndarray, "N Q"], list[bool]]:
        """Return codes that were generated without the grammar, and which answers have a well-formed image."""
        return self._codes(self._generate(prompts, params))

    def _codes(self, answers: list[tuple[Segment, ...]]) -> tuple[Int[np.ndarray, "N Q"], list[bool]]:
        """Return the codes of each answer's first image, zeros where it has none, and whether it has one."""
        missing = (0,) * self.tokenizer.config.codes_per_image
        codes = [[part.codes for part in answer if isinstance(part, ImageSegment)] for answer in answers]
        return np.array([found[0] if found else missing for found in codes]), [bool(found) for found in codes]

    def _generate(self, prompts: Sequence[Sequence[Segment]], params: SamplingParams) -> list[tuple[Segment, ...]]:
        if self.generator is None:
            raise ValueError("The workdir has no language model.")
        if self.style == SEED1_STYLE:  # the style itself words the request beside an image
            prompts = [[part for part in prompt if isinstance(part, ImageSegment)] or prompt for prompt in prompts]
        ids = [build_prompt([Message(USER, prompt)], self.style, self.generator.vocabulary) for prompt in prompts]
        padded = [ids[index] for index in self._padded_indices(len(ids))]
        answers = self.generator.generate(padded, params, batch_size=self.batch_size)
        return [answer.segments for answer in answers[: len(ids)]]

    def _padded_indices(self, count: int) -> list[int]:
        """Return indices of whole batches; the last index is repeated until the last batch is full."""
        return [min(index, count - 1) for index in range(-(-count // self.batch_size) * self.batch_size)]


def drawing_prompt(caption: str) -> list[TextSegment]:
    """Return the most plainly worded request to draw a caption."""
    phrases = Phrases.load()
    index = phrases.requests_drawn[0]
    return [TextSegment(f"{phrases.requests[index]} {caption}{phrases.closing_marks[index]}")]


def image_segment(codes: Int[np.ndarray, " Q"]) -> ImageSegment:
    return ImageSegment(tuple(map(int, codes)))


@dataclasses.dataclass(frozen=True, eq=False)
class Similarity:
    """Similarity of images under a vision tower.

    Attributes:
        directory: model directory of the vision tower.
    """

    directory: Path

    def __call__(
        self, first: UInt8[np.ndarray, "N S S 3"], second: UInt8[np.ndarray, "N S S 3"]
    ) -> Float[np.ndarray, " N"]:
        """Return the cosine similarity of each pair of images."""
        return (self.unit_vectors(first) * self.unit_vectors(second)).sum(-1)

    def unit_vectors(self, pixels: UInt8[np.ndarray, "N S S 3"]) -> Float[np.ndarray, "N E"]:
        """Return the normalized embedding of each image."""
        vectors = np.asarray(self._embed(pixels))
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    @functools.cached_property
    def _embed(self) -> Callable[[Any], jax.Array]:
        config, params = clip.import_vision(self.directory)
        model = Vit(config)
        return jax.jit(lambda pixels: model.apply({"params": params}, images.normalize(pixels), method="embed"))

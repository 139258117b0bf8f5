"""The trained models of a quickstart as one chain: from pictures and words to pictures and words."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from seed_jax import images
from seed_jax.convert.tokenizer import clip
from seed_jax.data.templates.phrases import Phrases
from seed_jax.data.world import Scene, paint
from seed_jax.inference.chat.prompts import USER, Turn, build_prompt
from seed_jax.inference.drawing.drawer import Drawer
from seed_jax.inference.drawing.request import DrawOptions
from seed_jax.inference.generation.generator import Generator
from seed_jax.inference.generation.segments import ImageSegment, Segment, TextSegment
from seed_jax.inference.image_tokenizer import ImageTokenizer
from seed_jax.models.tokenizer.vit import Vit

OPTIONS = DrawOptions(sampler="dpmpp", steps=12, guidance_scale=2.0)
SEED = 1_000_003  # of what is asked; training draws from other seeds
_TEXT_TOKENS, _IMAGE_TOKENS = 48, 64


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """The trained models; there is no generator where the recipe ended before the language model.

    Attributes:
        batch: how many are drawn or answered at a time, always as many: one program serves all.
    """

    tokenizer: ImageTokenizer
    drawer: Drawer
    generator: Generator | None
    side: int
    batch: int

    @classmethod
    def load(cls, workdir: Path, side: int, batch: int) -> "Chain":
        tokenizer = ImageTokenizer.load(workdir / "codebook", batch_size=batch)
        generator = Generator.load(workdir / "sft") if (workdir / "sft").is_dir() else None
        return cls(tokenizer, Drawer.load(workdir / "decoder"), generator, side, batch)

    def picture(self, scene: Scene, number: int) -> UInt8[np.ndarray, "S S 3"]:
        return paint(scene, self.side, np.random.default_rng([SEED, number]))

    def codes(self, pictures: Sequence[np.ndarray]) -> Int[np.ndarray, "N Q"]:
        return self.tokenizer.encode([Image.fromarray(picture) for picture in pictures])

    def draw(self, codes: Int[np.ndarray, "N Q"]) -> UInt8[np.ndarray, "N S S 3"]:
        rows = self._filled(len(codes))
        embeddings = np.asarray(self.tokenizer.embed_codes(codes))[rows]
        return self.drawer.draw(embeddings, list(range(len(rows))), OPTIONS, batch_size=self.batch)[: len(codes)]

    def say(self, prompts: list[list[Segment]]) -> list[str]:
        found = self._answers(prompts, _TEXT_TOKENS, mode="text")
        return [" ".join(part.text for part in answer if isinstance(part, TextSegment)).strip() for answer in found]

    def imagine(self, prompts: list[list[Segment]]) -> Int[np.ndarray, "N Q"]:
        """Return the codes of the image that answers each prompt; the grammar sees to it that there is one."""
        return self._codes(self._answers(prompts, _IMAGE_TOKENS, images=1))[0]

    def imagine_freely(self, prompts: list[list[Segment]]) -> tuple[Int[np.ndarray, "N Q"], list[bool]]:
        """Return codes as the model writes them without the grammar, and which answers have a whole image at all."""
        return self._codes(self._answers(prompts, _IMAGE_TOKENS, mode="none"))

    def _codes(self, answers: list[tuple[Segment, ...]]) -> tuple[Int[np.ndarray, "N Q"], list[bool]]:
        blank = (0,) * self.tokenizer.config.codes_per_image  # an answer without an image draws nothing right
        found = [[part.codes for part in answer if isinstance(part, ImageSegment)] for answer in answers]
        return np.array([(codes or [blank])[0] for codes in found]), [bool(codes) for codes in found]

    def _answers(self, prompts: list[list[Segment]], tokens: int, **rule) -> list[tuple[Segment, ...]]:
        vocabulary = self.generator.vocabulary
        ids = [build_prompt([Turn(USER, prompt)], "vicuna", vocabulary) for prompt in prompts]
        rows = self._filled(len(ids))
        found = self.generator.generate([ids[i] for i in rows], batch_size=self.batch, max_new_tokens=tokens, **rule)
        return [answer.segments for answer in found[: len(ids)]]

    def _filled(self, count: int) -> list[int]:
        """Return row numbers, the last repeated until the last batch is full."""
        return [min(i, count - 1) for i in range(-(-count // self.batch) * self.batch)]


def drawing_prompt(caption: str) -> list[Segment]:
    """Return the plainest request for a picture."""
    phrases = Phrases.load()
    place = phrases.requests_drawn[0]
    return [TextSegment(f"{phrases.requests[place]} {caption}{phrases.closing_marks[place]}")]


def image_segment(codes: Int[np.ndarray, " Q"]) -> ImageSegment:
    return ImageSegment(tuple(map(int, codes)))


@dataclasses.dataclass(frozen=True, eq=False)
class Similarity:
    """Tell how alike pictures are to a teacher's vision tower."""

    teacher: Path

    def __call__(self, one: UInt8[np.ndarray, "N S S 3"], other: UInt8[np.ndarray, "N S S 3"]) -> float:
        """Return the mean cosine of the embeddings of pictures, pair by pair."""
        first, second = (_unit(np.asarray(self._embed(pixels))) for pixels in (one, other))
        return float((first * second).sum(-1).mean())

    @functools.cached_property
    def _embed(self):
        config, params = clip.import_vision(self.teacher / "vision")
        model = Vit(config)
        return jax.jit(lambda pixels: model.apply({"params": params}, images.normalize(pixels), method="embed"))


def _unit(vectors: Float[np.ndarray, "N E"]) -> Float[np.ndarray, "N E"]:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

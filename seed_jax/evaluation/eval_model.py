"""The model under evaluation: prompts, generated answers, likelihoods and drawn images, all deterministic."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from seed_jax.evaluation.clip import ClipModel
from seed_jax.files import atomic_path
from seed_jax.inference.chat.prompts import USER, Message, build_prompt, interleave
from seed_jax.inference.generation.batching import Request
from seed_jax.inference.generation.scoring import Score, Scorer
from seed_jax.inference.generation.segments import Generation
from seed_jax.inference.seed_llama import MAX_IMAGE_BATCH, SeedLlama

Codes = tuple[int, ...]


class EvalModel:
    """A SEED-LLaMA as tasks use it.

    Args:
        model: the language model with its image tokenizer and decoder.
        clip: folder of a Hugging Face CLIP model, for tasks that compare images.
        out: directory where drawn images are written, if they are.
    """

    def __init__(self, model: SeedLlama, clip: Path | None = None, out: Path | None = None):
        self.model = model
        self._clip, self._out = clip, out

    @property
    def style(self) -> str:
        return self.model.style

    @property
    def vocabulary(self) -> Vocabulary:
        return self.model.generator.vocabulary

    @functools.cached_property
    def scorer(self) -> Scorer:
        return Scorer(self.model.generator)

    @functools.cached_property
    def clip(self) -> ClipModel:
        if self._clip is None:
            raise UserError("This task compares images by CLIP: give the folder of a CLIP model with --clip.")
        return ClipModel(self._clip)

    def save(self, image: Image.Image, task: str, sample_id: str) -> None:
        """Write a drawn image to `TASK/images/ID.png` in the run's directory."""
        if self._out is not None:
            path = drawn_image_path(self._out / task, sample_id)
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                image.save(temporary, format="PNG")

    def encode(self, groups: Sequence[Sequence[Image.Image]]) -> list[list[Codes]]:
        """Return the codes of each sample's images, which are encoded together."""
        self.model.image_tokenizer(MAX_IMAGE_BATCH)  # one batch size, however a run is cut into processes
        codes = iter(self.model.encode([image for group in groups for image in group]))
        return [[next(codes) for _ in group] for group in groups]

    def prompt(self, text: str, images: Sequence[Codes] = (), style: str | None = None) -> list[int]:
        """Return the token ids of one user message; images replace `<image>` placeholders or precede the text."""
        return build_prompt([Message(USER, interleave(text, images))], style or self.style, self.vocabulary)

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Answer requests as one batch.

        Raises:
            KeyboardInterrupt: the user interrupted; incomplete answers are not returned.
        """
        answers = self.model.generator.generate(requests)
        if any(answer.finish_reason == "interrupted" for answer in answers):
            raise KeyboardInterrupt
        return answers

    def score(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[str]]) -> list[list[Score]]:
        """Return the log-probabilities of texts after each prompt, which is prefilled once for all of them."""
        blank = self.vocabulary.blank
        ids = [[self.vocabulary.encode(blank + text, plain=True) for text in group] for group in continuations]
        return self.scorer.score(prompts, ids, batch_size=len(prompts))

    def draw(self, codes: Sequence[Codes], seed: int = 0) -> list[Image.Image]:
        """Draw an image from each list of codes, all with the same seed, so that batches do not matter."""
        embeddings = self.model.image_tokenizer().embed_codes(np.asarray(codes, np.int32))
        drawn = self.model.drawer.draw(embeddings, [seed] * len(codes), batch_size=1)
        return [Image.fromarray(pixels) for pixels in drawn]


def drawn_image_path(directory: Path, sample_id: str) -> Path:
    """Return where the image that was drawn for a sample is, in the directory of its task."""
    return directory / "images" / f"{sample_id.replace('/', '_')}.png"

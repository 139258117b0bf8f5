"""The model under evaluation: prompts, generated answers, likelihoods and drawn images, all deterministic."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from seed_jax.evaluation.clip import ClipModel
from seed_jax.evaluation.retrieval import ImageTextEncoder
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
        tokenizer: directory of the image tokenizer, for retrieval by its embeddings.
        text_vocabulary: vocab.txt of bert-base-uncased, if that directory has none.
    """

    def __init__(
        self,
        model: SeedLlama,
        clip: Path | None = None,
        tokenizer: Path | None = None,
        text_vocabulary: Path | None = None,
    ):
        self.model = model
        self._clip = clip
        self._tokenizer, self._text_vocabulary = tokenizer, text_vocabulary

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

    @functools.cached_property
    def image_text(self) -> ImageTextEncoder:
        if self._tokenizer is None:
            raise UserError("This task compares images with captions by an image tokenizer: give one with --tokenizer.")
        return ImageTextEncoder(self._tokenizer, self._text_vocabulary)

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

    def score_images(self, prompts: Sequence[Sequence[int]], images: Sequence[Codes]) -> list[list[Score]]:
        """Return the log-probabilities of each image's codes after each prompt and `<img>`."""
        return self.scorer.score_images(prompts, [list(images)] * len(prompts), batch_size=len(prompts))

    def draw(self, codes: Sequence[Codes], seed: int = 0) -> list[Image.Image]:
        """Draw an image from each list of codes, all with the same seed, so that batches do not matter."""
        embeddings = self.model.image_tokenizer().embed_codes(np.asarray(codes, np.int32))
        drawn = self.model.drawer.draw(embeddings, [seed] * len(codes), batch_size=1)
        return [Image.fromarray(pixels) for pixels in drawn]

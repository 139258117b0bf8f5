"""How likely given continuations of a prompt are: multiple choice by ranking, and an image's codes given text.

The prompt is read once and shared by its continuations, which are scored side by side.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from seed_jax.errors import UserError
from seed_jax.inference.generation.batching import bucket
from seed_jax.inference.generation.generator import Generator
from seed_jax.inference.generation.model_runner import Prompts, Streams

SMALLEST = 8  # continuations are filled up to powers of two from here on


@dataclasses.dataclass(frozen=True)
class Score:
    """Log-probabilities (natural) of a continuation's tokens, each given the prompt and the tokens before it."""

    log_probs: tuple[float, ...]

    @property
    def total(self) -> float:
        return sum(self.log_probs)

    @property
    def mean(self) -> float:
        """Return the total by the number of tokens, which does not favour short answers."""
        return self.total / len(self.log_probs)


class Scorer:
    """Scores with a generator's model."""

    def __init__(self, generator: Generator):
        self._generator = generator
        self._program = jax.jit(self._score, static_argnames=("options", "codes_only"))

    def score(
        self,
        prompts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[Sequence[int]]],
        *,
        batch_size: int = 8,
        codes_only: bool = False,
    ) -> list[list[Score]]:
        """Return the scores of each prompt's continuations.

        Args:
            prompts: token ids with BOS; `continuations`: for each of them one or more lists of token ids.
            batch_size: prompts at a time.
            codes_only: probabilities among image codes, as under the grammar inside an image, not among all tokens.
        """
        if len(prompts) != len(continuations):
            raise UserError(f"{len(prompts)} prompts but continuations for {len(continuations)}: give a list for each.")
        for place, (prompt, options) in enumerate(zip(prompts, continuations, strict=True), 1):
            self._check(place, prompt, options)
        found: list[list[Score]] = []
        for start in range(0, len(prompts), batch_size):
            part = slice(start, start + batch_size)
            found += self._batch(prompts[part], continuations[part], codes_only)
        return found

    def rank(self, prompt: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[int]:
        """Return the continuations' places, the likeliest (by mean log-probability of its tokens) first."""
        (scores,) = self.score([prompt], [continuations])
        return sorted(range(len(scores)), key=lambda place: -scores[place].mean)

    def score_images(
        self, prompts: Sequence[Sequence[int]], images: Sequence[Sequence[Sequence[int]]], **options
    ) -> list[list[Score]]:
        """Return log p of the codes of each prompt's images, drawn after the prompt and `<img>`, among all codes."""
        words = self._generator.vocabulary
        codes = [[words.image_ids(image)[1:-1] for image in group] for group in images]
        return self.score([[*prompt, words.boi] for prompt in prompts], codes, codes_only=True, **options)

    def _check(self, place: int, prompt: Sequence[int], options: Sequence[Sequence[int]]) -> None:
        limit, words = self._generator.config.max_length, self._generator.config.vocab_size
        if not prompt or not options or not all(options):
            raise UserError(f"Prompt {place}: expected a prompt and continuations of at least one token.")
        longest = len(prompt) + max(map(len, options))
        if longest > limit:
            raise UserError(f"Prompt {place} with its longest continuation has {longest} tokens, the context {limit}.")
        ids = [*prompt, *(token for option in options for token in option)]
        if not 0 <= min(ids) <= max(ids) < words:
            raise UserError(f"Prompt {place} or a continuation has token ids outside 0 to {words - 1}.")

    def _batch(self, prompts, continuations, codes_only: bool) -> list[list[Score]]:
        generator = self._generator
        rows = bucket(len(prompts), smallest=1)
        rows = -(-rows // generator.placement.shards) * generator.placement.shards
        options = bucket(max(map(len, continuations)), smallest=1)
        filling = [[generator.vocabulary.bos]] * (rows - len(prompts))
        padded = generator.batcher.pad([*prompts, *filling])
        longest = max(len(ids) for group in continuations for ids in group)
        tokens = np.zeros((rows, options, bucket(longest, smallest=SMALLEST)), np.int32)
        for row, group in enumerate(continuations):
            for option, ids in enumerate(group):
                tokens[row, option, : len(ids)] = ids
        tokens = tokens.reshape(rows * options, -1)
        with generator.placement.entered():
            placed = generator.placement.rows((padded, tokens))
            found = self._program(generator.params, *placed, options=options, codes_only=codes_only)
        found = np.asarray(found).reshape(rows, options, -1)
        return [
            [Score(tuple(found[row, option, : len(ids)].tolist())) for option, ids in enumerate(group)]
            for row, group in enumerate(continuations)
        ]

    def _score(
        self, params: dict[str, Any], prompts: Prompts, tokens: Int[Array, "R C"], *, options: int, codes_only: bool
    ) -> Float[Array, "R C"]:
        streams = Streams(self._generator.model, options)
        cache = streams.begin(params, prompts, tokens.shape[1])
        # A continuation is scored from the prompt's last token on, whose slot of the cache is written once more.
        before = jnp.concatenate([streams.last(prompts)[:, None], tokens[:, :-1]], axis=1)
        positions = streams.per_beam(prompts.lengths)[:, None] - 1 + jnp.arange(tokens.shape[1])[None]
        logits = self._generator.model.apply({"params": params}, before, cache, positions, method="decode").logits
        if codes_only:
            words = self._generator.vocabulary
            token = jnp.arange(logits.shape[-1])
            is_code = (token >= words.first_code) & (token < words.first_code + words.num_codes)
            logits = jnp.where(is_code[None, None], logits, -jnp.inf)
        scores = jax.nn.log_softmax(logits, axis=-1)
        return jnp.take_along_axis(scores, tokens[:, :, None], axis=-1)[:, :, 0]

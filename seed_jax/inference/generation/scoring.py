"""Log-probabilities of given continuations of a prompt: multiple choice by likelihood, and an image's codes given text.

The prompt is prefilled once and shared by its continuations, which are scored side by side.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from seed_jax.errors import UserError
from seed_jax.inference.generation.batching import bucket
from seed_jax.inference.generation.generator import Generator
from seed_jax.inference.generation.model_runner import ModelRunner, PromptBatch
from seed_jax.inference.programs import shared
from seed_jax.models.nn.decoder_only import DecoderOnly
from seed_jax.typing import Tree

SMALLEST_LENGTH = 4  # continuations are padded to powers of two of at least this length


@dataclasses.dataclass(frozen=True)
class Score:
    """Natural log-probabilities of a continuation's tokens, each given the prompt and the tokens before it."""

    log_probs: tuple[float, ...]

    @property
    def total(self) -> float:
        return sum(self.log_probs)

    @property
    def mean(self) -> float:
        """Return the total divided by the number of tokens, which does not favour short continuations."""
        return self.total / len(self.log_probs)


class Scorer:
    """Scores continuations with a generator's model.

    Example:
        scorer = Scorer(Generator.load("models/seed_llama_8b"))
        best, *_ = scorer.rank(prompt_ids, [answer_a_ids, answer_b_ids])
    """

    def __init__(self, generator: Generator):
        self._generator = generator
        vocabulary = generator.vocabulary
        self._program = _score_program(
            generator.model, vocabulary.first_code, vocabulary.num_codes, generator.sharder.mesh
        )

    def score(
        self,
        prompts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[Sequence[int]]],
        *,
        batch_size: int = 8,
        codes_only: bool = False,
    ) -> list[list[Score]]:
        """Score each prompt's continuations.

        Args:
            prompts: token ids with BOS.
            continuations: for each prompt one or more lists of token ids.
            batch_size: prompts at a time.
            codes_only: normalize over image codes, as under the grammar inside an image, instead of over all tokens.

        Returns:
            For each prompt one `Score` per continuation.

        Raises:
            UserError: the lists do not match, are empty, too long, or contain ids of another vocabulary.
        """
        if len(prompts) != len(continuations):
            raise UserError(
                f"There are {len(prompts)} prompts but continuations for {len(continuations)}: give one list each."
            )
        for number, (prompt, options) in enumerate(zip(prompts, continuations, strict=True), 1):
            self._check(number, prompt, options)
        scores: list[list[Score]] = []
        for start in range(0, len(prompts), batch_size):
            batch = slice(start, start + batch_size)
            scores += self._score_batch(prompts[batch], continuations[batch], codes_only)
        return scores

    def rank(self, prompt: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[int]:
        """Return the indices of the continuations by descending mean log-probability of their tokens."""
        (scores,) = self.score([prompt], [continuations])
        return sorted(range(len(scores)), key=lambda index: -scores[index].mean)

    def score_images(
        self, prompts: Sequence[Sequence[int]], images: Sequence[Sequence[Sequence[int]]], *, batch_size: int = 8
    ) -> list[list[Score]]:
        """Return log p of the codes of each prompt's images, following the prompt and `<img>`, among all codes."""
        vocabulary = self._generator.vocabulary
        codes = [[vocabulary.image_ids(image)[1:-1] for image in group] for group in images]
        prefixes = [[*prompt, vocabulary.boi] for prompt in prompts]
        return self.score(prefixes, codes, codes_only=True, batch_size=batch_size)

    def _check(self, number: int, prompt: Sequence[int], options: Sequence[Sequence[int]]) -> None:
        limit, vocab_size = self._generator.config.max_length, self._generator.config.vocab_size
        if not prompt or not options or not all(options):
            raise UserError(f"Prompt {number}: expected a prompt and continuations of at least one token.")
        longest = len(prompt) + max(map(len, options))
        if longest > limit:
            raise UserError(
                f"Prompt {number} with its longest continuation has {longest} tokens, but the context is {limit}."
            )
        ids = [*prompt, *(token for option in options for token in option)]
        if not 0 <= min(ids) <= max(ids) < vocab_size:
            raise UserError(f"Prompt {number} or a continuation has token ids outside 0 to {vocab_size - 1}.")

    def _score_batch(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]], codes_only: bool
    ) -> list[list[Score]]:
        generator = self._generator
        batch_size = generator.batcher.padded_batch_size(len(prompts))
        options = bucket(max(map(len, continuations)), smallest=1)
        padding = [[generator.vocabulary.bos]] * (batch_size - len(prompts))
        padded = generator.batcher.pad([*prompts, *padding])
        longest = max(len(ids) for group in continuations for ids in group)
        tokens = np.zeros((batch_size, options, bucket(longest, smallest=SMALLEST_LENGTH)), np.int32)
        for row, group in enumerate(continuations):
            for option, ids in enumerate(group):
                tokens[row, option, : len(ids)] = ids
        with generator.sharder.mesh_context():
            sharded = generator.sharder.shard((padded, tokens.reshape(batch_size * options, -1)))
            log_probs = self._program(generator.params, *sharded, options=options, codes_only=codes_only)
        log_probs = np.asarray(log_probs).reshape(batch_size, options, -1)
        return [
            [Score(tuple(log_probs[row, option, : len(ids)].tolist())) for option, ids in enumerate(group)]
            for row, group in enumerate(continuations)
        ]


@shared
def _score_program(model: DecoderOnly, first_code: int, num_codes: int, mesh: Mesh | None) -> Callable[..., Any]:
    """Return a jitted function of parameters, prompts and continuations, [R, C]: their log-probabilities."""
    del mesh  # only what `shared` compares: the calls are in its context

    def score(
        params: Tree, prompts: PromptBatch, tokens: Int[Array, "R C"], *, options: int, codes_only: bool
    ) -> Float[Array, "R C"]:
        runner = ModelRunner(model, beams=options)
        cache = runner.prefill(params, prompts, tokens.shape[1])
        # Scoring starts from the prompt's last token, whose slot of the cache is written once more.
        inputs = jnp.concatenate([runner.last_tokens(prompts)[:, None], tokens[:, :-1]], axis=1)
        start = runner.repeat_for_beams(prompts.lengths)[:, None] - 1
        logits = runner.score(params, inputs, cache, start + jnp.arange(tokens.shape[1])[None])
        if codes_only:
            token = jnp.arange(logits.shape[-1])
            is_code = (token >= first_code) & (token < first_code + num_codes)
            logits = jnp.where(is_code[None, None], logits, -jnp.inf)
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        return jnp.take_along_axis(log_probs, tokens[:, :, None], axis=-1)[:, :, 0]

    return jax.jit(score, static_argnames=("options", "codes_only"))

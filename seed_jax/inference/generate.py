"""Answers of text and images to prompts of token ids.

Prompts of unequal length share a batch. Batches are filled up to a power of two in rows, prompt length and answer
length, so that a new prompt rarely means a new compilation.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from flax.traverse_util import flatten_dict, unflatten_dict

from seed_jax.checkpoint import model_dir
from seed_jax.data.vocab import Vocabulary
from seed_jax.errors import UserError
from seed_jax.inference.decoding import generate_ids
from seed_jax.inference.grammar import Grammar
from seed_jax.inference.language_model import load_language_model
from seed_jax.inference.segments import Segment, parse
from seed_jax.models.llama import Llama, LlamaConfig
from seed_jax.precision import Precision

SMALLEST_BUCKET = 32


@dataclasses.dataclass(frozen=True)
class Generation:
    """What was generated after one prompt.

    Attributes:
        ids: without the end of the sequence; with a forced `<img>`.
        stopped: "eos", or "length" where the budget or the context was used up.
    """

    ids: tuple[int, ...]
    segments: tuple[Segment, ...]
    stopped: str


class Generator:
    """A language model on the device, ready to answer prompts.

    Args:
        params: of a `Llama` of these sizes, adapters merged.
        vocabulary: the model's own.
        precision: float32 by default; with bfloat16 compute the matrices are stored in bfloat16 too.
    """

    def __init__(
        self,
        config: LlamaConfig,
        params: dict[str, Any],
        vocabulary: Vocabulary,
        *,
        precision: Precision = Precision(),
        attention: str = "xla",
    ):
        if vocabulary.size != config.vocab_size:
            raise UserError(
                f"The vocabulary has {vocabulary.size} tokens but the language model {config.vocab_size}: use the "
                "vocabulary that the model was trained with."
            )
        model = Llama(config, precision, attention=attention)
        abstract = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
        model_dir.check_tree(params, meta.unbox(abstract), "the language model")
        self.config, self.vocabulary, self.precision = config, vocabulary, precision
        self._params = _rounded(params, precision)
        self._program = jax.jit(functools.partial(generate_ids, model), static_argnums=(0, 1))
        self._need = jax.jit(lambda grammar, *prompts: grammar.need(grammar.start(*prompts)), static_argnums=0)

    @classmethod
    def load(cls, directory: str | Path, **options) -> "Generator":
        """Read a model directory or a training workdir; `options` as for the class."""
        found = load_language_model(directory, options.get("precision", Precision()).params)
        return cls(found.config, found.params, found.vocabulary, **options)

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int = 512, mode: str = "free"
    ) -> list[Generation]:
        """Answer prompts (token ids with BOS), all in one batch.

        Args:
            max_new_tokens: for each answer; less where the context of `config.max_length` tokens ends before.
            mode: of the grammar: "free", "image" (begin with an image), "text" or "none".
        """
        if not prompts:
            return []
        grammar = Grammar.of(self.vocabulary, mode)
        tokens, lengths, budgets = self._batch(prompts, max_new_tokens)
        self._check_room(grammar, tokens, lengths, budgets, len(prompts))
        new_tokens = bucket(int(budgets.max()), self.config.max_length)
        answers = jax.device_get(self._program(grammar, new_tokens, self._params, tokens, lengths, budgets))
        return [
            self._generation(answers.ids[row, : answers.counts[row]], answers.ended[row]) for row in range(len(prompts))
        ]

    def _batch(self, prompts: Sequence[Sequence[int]], max_new_tokens: int):
        """Return padded tokens, lengths and budgets; rows without a prompt have budget 0."""
        limit = self.config.max_length
        for index, prompt in enumerate(prompts):
            if not 0 < len(prompt) < limit:
                raise UserError(
                    f"Prompt {index + 1} has {len(prompt)} tokens, expected 1 to {limit - 1}: the model's context is "
                    f"{limit} tokens, answer included."
                )
            if not 0 <= min(prompt) <= max(prompt) < self.config.vocab_size:
                raise UserError(f"Prompt {index + 1} has token ids outside 0 to {self.config.vocab_size - 1}.")
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {max_new_tokens}, expected at least 1.")
        rows, length = bucket(len(prompts), smallest=1), bucket(max(map(len, prompts)), limit)
        tokens = np.full((rows, length), self.vocabulary.pad, np.int32)
        lengths, budgets = np.ones(rows, np.int32), np.zeros(rows, np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
            lengths[row], budgets[row] = len(prompt), min(max_new_tokens, limit - len(prompt))
        return tokens, lengths, budgets

    def _check_room(self, grammar: Grammar, tokens, lengths, budgets, count: int) -> None:
        if grammar.mode == "none":
            return
        needs = np.asarray(self._need(grammar, tokens, lengths))
        for row in range(count):
            if needs[row] > budgets[row]:
                raise UserError(
                    f"Prompt {row + 1} leaves room for {budgets[row]} new tokens (max_new_tokens and the context of "
                    f"{self.config.max_length} considered), but the image to be generated needs {needs[row]}."
                )

    def _generation(self, ids: np.ndarray, ended: np.bool_) -> Generation:
        ids = tuple(map(int, ids))
        return Generation(ids, tuple(parse(ids, self.vocabulary)), "eos" if ended else "length")


def bucket(size: int, limit: int | None = None, smallest: int = SMALLEST_BUCKET) -> int:
    """Return the power of two, from `smallest` on, that `size` is filled up to; never more than `limit`."""
    filled = max(smallest, 1 << (size - 1).bit_length())
    return filled if limit is None else min(filled, limit)


def _rounded(params: dict[str, Any], precision: Precision) -> dict[str, Any]:
    """Bring parameters to the device, matrices in the compute format: rounded once instead of at every token."""
    flat = {path: jnp.asarray(leaf) for path, leaf in flatten_dict(params).items()}
    compute = precision.compute_dtype
    return unflatten_dict({p: leaf if p[-1] == "scale" else leaf.astype(compute) for p, leaf in flat.items()})

"""The language model's rows while generating: beams of an answer, and beside each the prompt it is guided away from.

B answers of K beams are R = B K rows; guided, the model runs 2 R rows, a row and its negative next to each other, so
that a batch cut over devices stays cut.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from seed_jax.models.llama.model import KVCache, Llama
from seed_jax.typing import Leaf


@flax.struct.dataclass
class Prompts:
    """Token ids, padded on the right, and their true lengths; guided, every second row is a negative prompt."""

    tokens: Int[Leaf, "M T"]
    lengths: Int[Leaf, " M"]


@flax.struct.dataclass
class Scored:
    """Scores of the next token and the cache that holds what they follow."""

    scores: Float[Leaf, "R V"]
    cache: KVCache


@dataclasses.dataclass(frozen=True)
class Streams:
    """Run the model over rows; hashable, so that a compiled program can be chosen by it."""

    model: Llama
    beams: int = 1
    guided: bool = False

    @property
    def sides(self) -> int:
        return 2 if self.guided else 1

    def begin(self, params: dict[str, Any], prompts: Prompts, new_tokens: int) -> KVCache:
        """Read the prompts, once for all beams of a row."""
        rows, length = prompts.tokens.shape
        cache = self.model.empty_cache(rows, min(length + new_tokens, self.model.config.max_length))
        positions = jnp.broadcast_to(jnp.arange(length), (rows, length))
        # Nothing is scored here: the loop begins with the prompt's last token, so that it alone chooses tokens.
        cache = self._decode(params, prompts.tokens, cache, positions, fresh=True, at=jnp.zeros(rows, jnp.int32)).cache
        return cache.replace(k=self.per_beam(cache.k), v=self.per_beam(cache.v)) if self.beams > 1 else cache

    def last(self, prompts: Prompts) -> Int[Array, " M"]:
        """Return the last token of each prompt, for every row of the model."""
        return self.per_beam(jnp.take_along_axis(prompts.tokens, prompts.lengths[:, None] - 1, axis=1)[:, 0])

    def both(self, token: Int[Array, " R"]) -> Int[Array, " M"]:
        """Return chosen tokens for every row of the model: a negative goes on like what is guided away from it."""
        return jnp.repeat(token, self.sides)

    def go_on(
        self,
        params: dict[str, Any],
        token: Int[Array, " M"],
        cache: KVCache,
        positions: Int[Array, " M"],
        guidance: Float[Array, " R"],
    ) -> Scored:
        """Add one token to every row."""
        decoded = self._decode(params, token[:, None], cache, positions[:, None])
        return Scored(self._guide(decoded.logits[:, 0], guidance), decoded.cache)

    def reorder(self, cache: KVCache, parents: Int[Array, "B K"]) -> KVCache:
        """Let beam k of a row go on from what its beam `parents[k]` has seen."""

        def one(stack: Array) -> Array:
            layers, rows, *rest = stack.shape
            stack = stack.reshape(layers, *parents.shape, self.sides, *rest)
            index = parents.reshape(1, *parents.shape, *(1,) * (stack.ndim - 3))
            return jnp.take_along_axis(stack, index, axis=2).reshape(layers, rows, *rest)

        return cache.replace(k=one(cache.k), v=one(cache.v))

    def per_beam(self, x: Array) -> Array:
        """Repeat every prompt's (and its negative's) part for its beams; the rows are the first axis but for caches."""
        axis = 1 if x.ndim == 5 else 0
        pairs = x.reshape(*x.shape[:axis], -1, 1, self.sides, *x.shape[axis + 1 :])
        return jnp.repeat(pairs, self.beams, axis=axis + 1).reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])

    def _decode(self, params, *arguments, **options):
        return self.model.apply({"params": params}, *arguments, method="decode", **options)

    def _guide(self, logits: Float[Array, "M V"], guidance: Float[Array, " R"]) -> Float[Array, "R V"]:
        if not self.guided:
            return logits
        scores = jax.nn.log_softmax(logits, axis=-1)
        positive, negative, scale = scores[0::2], scores[1::2], guidance[:, None]
        # Without guidance the row's own scores, not what is left of them after adding and taking away the others.
        return jnp.where(scale == 1.0, positive, negative + scale * (positive - negative))

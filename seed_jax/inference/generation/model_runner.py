"""The forward passes of generation: prefill and decode steps for beams and classifier-free guidance.

B requests of K beams are R = B K sequences. With guidance the model runs M = 2 R sequences: each one next to its
negative (unconditional) counterpart, so that a batch sharded over devices stays sharded. Without it M = R.
"""

import dataclasses
from typing import cast

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from seed_jax.models.nn.decoder_only import DecodeOutput, DecoderOnly
from seed_jax.models.nn.kv_cache import KVCache
from seed_jax.typing import Leaf, Tree


@flax.struct.dataclass
class PromptBatch:
    """Token ids, padded on the right, and their lengths; with guidance every second sequence is a negative prompt."""

    tokens: Int[Leaf, "M T"]
    lengths: Int[Leaf, " M"]


@flax.struct.dataclass
class StepOutput:
    """Logits of the next token (after each of T, if several were run) and the updated cache.

    With guidance the logits are guided log-probabilities.
    """

    logits: Float[Leaf, "R ... V"]
    cache: KVCache


@dataclasses.dataclass(frozen=True)
class ModelRunner:
    """Runs the language model on a batch; hashable, to be a static argument of compiled programs.

    Attributes:
        model: a language model with unrolled layers.
        beams: beams per request (K).
        guided: whether every sequence has a negative counterpart.
    """

    model: DecoderOnly
    beams: int = 1
    guided: bool = False

    @property
    def num_branches(self) -> int:
        """Return how many sequences the model runs per beam: 2 with guidance (conditional and negative), else 1."""
        return 2 if self.guided else 1

    def prefill(self, params: Tree, prompts: PromptBatch, max_new_tokens: int) -> KVCache:
        """Run the prompts once and return the KV cache, repeated for every beam."""
        batch_size, length = prompts.tokens.shape
        cache = self.model.init_cache(batch_size, min(length + max_new_tokens, self.model.config.max_length))
        positions = jnp.broadcast_to(jnp.arange(length), (batch_size, length))
        # The logits are not used: the first decode step repeats the last token of the prompt, so that only decode
        # steps choose tokens.
        first = jnp.zeros(batch_size, jnp.int32)
        cache = self._forward(params, prompts.tokens, cache, positions, prefill=True, logits_at=first).cache
        if self.beams == 1:
            return cache
        return dataclasses.replace(cache, k=self.repeat_for_beams(cache.k), v=self.repeat_for_beams(cache.v))

    def decode_step(
        self,
        params: Tree,
        token: Int[Array, " M"],
        cache: KVCache,
        positions: Int[Array, " M"],
        guidance_scale: Float[Array, " R"],
    ) -> StepOutput:
        """Append one token to every sequence and score the next one."""
        decoded = self._forward(params, token[:, None], cache, positions[:, None])
        return StepOutput(self._guide(decoded.logits[:, 0], guidance_scale), decoded.cache)

    def decode_window(
        self,
        params: Tree,
        tokens: Int[Array, "M T"],
        cache: KVCache,
        positions: Int[Array, "M T"],
        guidance_scale: Float[Array, " R"],
    ) -> StepOutput:
        """Write several tokens of every sequence to the cache and score the next one after each of them."""
        decoded = self._forward(params, tokens, cache, positions)
        guide_column = jax.vmap(lambda logits: self._guide(logits, guidance_scale), in_axes=1, out_axes=1)
        return StepOutput(guide_column(decoded.logits), decoded.cache)

    def append(self, params: Tree, tokens: Int[Array, "M T"], cache: KVCache, positions: Int[Array, "M T"]) -> KVCache:
        """Return the KV cache with a chunk of each prompt, whose earlier positions are in it."""
        first = jnp.zeros(len(tokens), jnp.int32)  # its logits are not used, and not computed
        return self._forward(params, tokens, cache, positions, logits_at=first).cache

    def score(
        self, params: Tree, tokens: Int[Array, "M T"], cache: KVCache, positions: Int[Array, "M T"]
    ) -> Float[Array, "M T V"]:
        """Return the logits that follow each of several tokens per sequence."""
        return self._forward(params, tokens, cache, positions).logits

    def last_tokens(self, prompts: PromptBatch) -> Int[Array, " M"]:
        """Return the last token of each prompt, repeated for every beam."""
        last = jnp.take_along_axis(prompts.tokens, prompts.lengths[:, None] - 1, axis=1)[:, 0]
        return self.repeat_for_beams(last)

    def repeat_for_branches(self, x: Shaped[Array, "R ..."]) -> Shaped[Array, "M ..."]:
        """Repeat the values of each sequence for its negative branch, which continues with the same tokens."""
        return jnp.repeat(x, self.num_branches, axis=0)

    def repeat_for_beams(self, x: Array) -> Array:
        """Repeat every prompt's entry (and its negative's) for its beams; the batch axis of caches is axis 1."""
        axis = 1 if x.ndim == 5 else 0
        pairs = x.reshape(*x.shape[:axis], -1, 1, self.num_branches, *x.shape[axis + 1 :])
        return jnp.repeat(pairs, self.beams, axis=axis + 1).reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])

    def reorder_cache(self, cache: KVCache, parents: Int[Array, "B K"]) -> KVCache:
        """Let beam k of each request continue from its former beam `parents[k]`."""

        def reorder(stack: Array) -> Array:
            layers, batch_size, *rest = stack.shape
            stack = stack.reshape(layers, *parents.shape, self.num_branches, *rest)
            index = parents.reshape(1, *parents.shape, *(1,) * (stack.ndim - 3))
            return jnp.take_along_axis(stack, index, axis=2).reshape(layers, batch_size, *rest)

        return dataclasses.replace(cache, k=reorder(cache.k), v=reorder(cache.v))

    def _forward(self, params: Tree, *arguments, **options) -> DecodeOutput:
        return cast(DecodeOutput, self.model.apply({"params": params}, *arguments, method="decode", **options))

    def _guide(self, logits: Float[Array, "M V"], guidance_scale: Float[Array, " R"]) -> Float[Array, "R V"]:
        return guide(logits, guidance_scale) if self.guided else logits


def guide(logits: Float[Array, "M V"], guidance_scale: Float[Array, " R"]) -> Float[Array, "R V"]:
    """Return the guided log-probabilities of pairs of conditional and negative sequences."""
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    conditional, negative, scale = log_probs[0::2], log_probs[1::2], guidance_scale[:, None]
    # At scale 1 exactly the sequence's own scores, free of the rounding of the sum.
    return jnp.where(scale == 1.0, conditional, negative + scale * (conditional - negative))


@dataclasses.dataclass(frozen=True)
class SlotRunner(ModelRunner):
    """Runs decode steps of slots, of which every two neighbours may be a guided sequence and its negative.

    Sequences M and outputs R are the same here: guided neighbours (a scale other than 1) get equal logits, and with
    equal sampling parameters they draw equal tokens.
    """

    def _guide(self, logits: Float[Array, "M V"], guidance_scale: Float[Array, " M"]) -> Float[Array, "M V"]:
        if len(logits) % 2:
            return logits  # no neighbours, no guidance

        def guided(logits: Float[Array, "M V"]) -> Float[Array, "M V"]:
            pairs = jnp.repeat(guide(logits, guidance_scale[0::2]), 2, axis=0)
            return jnp.where((guidance_scale != 1.0)[:, None], pairs, logits)

        return jax.lax.cond(jnp.any(guidance_scale != 1.0), guided, lambda logits: logits, logits)

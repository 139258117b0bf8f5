"""The program that generates: prefill, then a loop over a static KV cache with the grammar inside (spec I.C).

The loop runs up to a given step and can be continued, by the same compiled program: so tokens can be shown, or a
generation stopped, while it goes on.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from seed_jax.inference.generation.grammar import Grammar, GrammarState
from seed_jax.inference.generation.model_runner import Prompts, Streams
from seed_jax.inference.generation.sampling import draw
from seed_jax.inference.generation.sampling_params import Controls
from seed_jax.models.llama.model import KVCache
from seed_jax.typing import Leaf


@flax.struct.dataclass
class Answers:
    """Generated ids, how many of them count in each row (EOS does not), and what has ended a row.

    Attributes:
        done: rows that are finished: by EOS (`ended`), by a stop string (`stopped`) or because their budget is used up.
        scores: of a beam search, log p / length ** penalty.
    """

    ids: Int[Leaf, "B N"]
    counts: Int[Leaf, " B"]
    done: Bool[Leaf, " B"]
    ended: Bool[Leaf, " B"]
    stopped: Bool[Leaf, " B"]
    scores: Float[Leaf, " B"] | None = None


@flax.struct.dataclass
class State:
    """What the loop carries; N is the most tokens that may be generated."""

    step: Int[Leaf, ""]
    token: Int[Leaf, " M"]
    answers: Answers
    grammar: GrammarState
    stop: Int[Leaf, " B"]
    lengths: Int[Leaf, " M"]
    cache: KVCache


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Answer prompts token by token: the likeliest ones, or drawn ones; hashable."""

    streams: Streams
    grammar: Grammar

    def begin(self, params: dict[str, Any], prompts: Prompts, controls: Controls, new_tokens: int) -> State:
        """Read the prompts."""
        rows = controls.budgets.shape[0]
        zero, no = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, bool)
        own = slice(None, None, self.streams.sides)
        return State(
            step=jnp.int32(0),
            token=self.streams.last(prompts),
            answers=Answers(jnp.zeros((rows, new_tokens), jnp.int32), zero, controls.budgets <= 0, no, no),
            grammar=self.grammar.start(prompts.tokens[own], prompts.lengths[own]),
            stop=zero,
            lengths=prompts.lengths,
            cache=self.streams.begin(params, prompts, new_tokens),
        )

    def go_on(self, params: dict[str, Any], controls: Controls, state: State, until: Int[Array, ""]) -> State:
        """Generate until `until` tokens have been, or every row is done."""

        def unfinished(state: State) -> Bool[Array, ""]:
            return ~state.answers.done.all() & (state.step < until)

        def body(state: State) -> State:
            positions = state.lengths + state.step - 1  # at first that of the prompt's last token
            scored = self.streams.go_on(params, state.token, state.cache, positions, controls.guidance)
            return self._choose(state, scored.scores, scored.cache, controls)

        return jax.lax.while_loop(unfinished, body, state)

    def answers(self, state: State) -> Answers:
        return state.answers

    def _choose(self, state: State, scores: Float[Array, "B V"], cache: KVCache, controls: Controls) -> State:
        before, budgets = state.answers, controls.budgets
        allowed = self.grammar.allowed(controls.rules, state.grammar, budgets - before.counts)
        token = draw(jnp.where(allowed, scores, -jnp.inf), controls.sampling, state.step)
        active = ~before.done
        ended = before.ended | (active & (token == self.grammar.eos))
        counts = before.counts + (active & ~ended)
        grammar = self.grammar.advance(state.grammar, token)
        stop, stopped = state.stop, before.stopped
        if controls.stops is not None:
            may_stop = self.grammar.may_end(controls.rules, grammar)
            # What has come before the answer may stop is forgotten.
            stop = jnp.where(may_stop, controls.stops.advance(stop, token), 0)
            stopped = stopped | (active & ~ended & controls.stops.reached(stop))
        return state.replace(
            step=state.step + 1,
            token=self.streams.both(token),
            answers=before.replace(
                ids=jax.lax.dynamic_update_slice(before.ids, token[:, None], (0, state.step)),
                counts=counts,
                done=before.done | ended | stopped | (counts >= budgets),
                ended=ended,
                stopped=stopped,
            ),
            grammar=grammar,
            stop=stop,
            cache=cache,
        )

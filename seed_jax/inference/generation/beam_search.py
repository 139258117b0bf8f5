"""Beam search and beam sampling, equal to transformers' `generate` (version 5), with the grammar inside.

B answers, K beams each, and 2 K candidates a step, so that K of them can go on even if the best K all end. A row's
search does not depend on the other rows.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from seed_jax.inference.generation.decode_loop import Answers
from seed_jax.inference.generation.grammar import Grammar, GrammarState
from seed_jax.inference.generation.model_runner import Prompts, Scored, Streams
from seed_jax.inference.generation.sampling import filtered, keys
from seed_jax.inference.generation.sampling_params import EARLY_STOPPING, Controls
from seed_jax.models.llama.model import KVCache
from seed_jax.typing import Leaf


@flax.struct.dataclass
class Beams:
    """C sequences of each row, the best first; N is the most tokens that may be generated.

    Attributes:
        scores: log p of running beams, log p / length ** penalty of finished ones.
        counts: tokens, EOS left out.
        ended, stopped: by EOS, by a stop string.
        finished: False where the list of finished beams still has a vacant place.
    """

    ids: Int[Leaf, "B C N"]
    scores: Float[Leaf, "B C"]
    counts: Int[Leaf, "B C"]
    ended: Bool[Leaf, "B C"]
    stopped: Bool[Leaf, "B C"]
    finished: Bool[Leaf, "B C"]

    def take(self, index: Int[Array, "B D"]) -> "Beams":
        return jax.tree.map(lambda leaf: take(leaf, index), self)

    def best(self, scores: Float[Array, "B C"], count: int) -> tuple["Beams", Int[Array, "B D"]]:
        """Return the `count` beams with the highest `scores`, which become theirs, and where they stood."""
        scores, index = jax.lax.top_k(scores, count)
        return self.take(index).replace(scores=scores), index


@flax.struct.dataclass
class Candidates:
    """Continuations of the running beams, and which of them are at their end."""

    beams: Beams
    parents: Int[Leaf, "B C"]
    token: Int[Leaf, "B C"]
    grammar: GrammarState
    stop: Int[Leaf, " BC"]
    at_end: Bool[Leaf, "B C"]


@flax.struct.dataclass
class BeamState:
    """What the loop carries; R = B K."""

    step: Int[Leaf, ""]
    token: Int[Leaf, " M"]
    running: Beams
    grammar: GrammarState  # of the running beams
    stop: Int[Leaf, " R"]
    finished: Beams
    improvable: Bool[Leaf, " B"]
    done: Bool[Leaf, " B"]
    lengths: Int[Leaf, " M"]
    cache: KVCache


def take(leaf: Array, index: Int[Array, "B D"]) -> Array:
    return jnp.take_along_axis(leaf, index.reshape(*index.shape, *(1,) * (leaf.ndim - 2)), axis=1)


LOW = -1e9  # what transformers adds to the score of a beam that must not be chosen
_FIRST, _NEVER = EARLY_STOPPING.index("first"), EARLY_STOPPING.index("never")


@dataclasses.dataclass(frozen=True)
class BeamSearch:
    """Answer prompts with the best of several beams; with a temperature, candidates are drawn; hashable."""

    streams: Streams
    grammar: Grammar

    def begin(self, params: dict[str, Any], prompts: Prompts, controls: Controls, new_tokens: int) -> BeamState:
        """Read the prompts."""
        rows, beams, own = controls.budgets.shape[0], self.streams.beams, slice(None, None, self.streams.sides)
        zero, no = jnp.zeros((rows, beams), jnp.int32), jnp.zeros((rows, beams), bool)
        vacant = Beams(jnp.zeros((rows, beams, new_tokens), jnp.int32), zero + LOW, zero, no, no, no)
        return BeamState(
            step=jnp.int32(0),
            token=self.streams.last(prompts),
            # All beams are alike at first: only the first one may be continued.
            running=vacant.replace(scores=vacant.scores.at[:, 0].set(0.0)),
            grammar=jax.tree.map(
                lambda leaf: jnp.repeat(leaf, beams), self.grammar.start(prompts.tokens[own], prompts.lengths[own])
            ),
            stop=zero.reshape(-1),
            finished=vacant,
            improvable=jnp.ones(rows, bool),
            done=controls.budgets <= 0,
            lengths=self.streams.per_beam(prompts.lengths),
            cache=self.streams.begin(params, prompts, new_tokens),
        )

    def go_on(self, params: dict[str, Any], controls: Controls, state: BeamState, until: Int[Array, ""]) -> BeamState:
        """Search until there have been `until` steps, or every row is done."""

        def body(state: BeamState) -> BeamState:
            positions, guidance = state.lengths + state.step - 1, self._guidance(controls)
            scored = self.streams.go_on(params, state.token, state.cache, positions, guidance)
            return self._choose(state, scored, controls)

        return jax.lax.while_loop(lambda state: ~state.done.all() & (state.step < until), body, state)

    def answers(self, state: BeamState) -> Answers:
        """Return the best finished beam of each row, or the best running one where none is finished."""
        some = state.finished.finished[:, 0]
        best = jax.tree.map(lambda a, b: _where(some, a, b), state.finished, state.running)
        return Answers(
            ids=best.ids[:, 0],
            counts=best.counts[:, 0],
            done=state.done,
            ended=best.ended[:, 0],
            stopped=best.stopped[:, 0],
            scores=best.scores[:, 0],
        )

    def _guidance(self, controls: Controls) -> Float[Array, " R"]:
        return _repeat(controls.guidance, self.streams.beams)

    def _choose(self, state: BeamState, scored: Scored, controls: Controls) -> BeamState:
        found = self._candidates(state, scored.scores, controls)
        running, index = found.beams.best(found.beams.scores + LOW * found.at_end, self.streams.beams)
        finished = self._finish(state, found, controls)
        improvable = state.improvable & _improvable(state.step + 1, running, finished, controls)
        full = finished.finished.all(-1) & (controls.early_stopping == _FIRST)
        flat = index + jnp.arange(len(index))[:, None] * found.token.shape[1]
        return BeamState(
            step=state.step + 1,
            token=self.streams.both(take(found.token, index).reshape(-1)),
            running=jax.tree.map(lambda new, old: _where(state.done, old, new), running, state.running),
            grammar=jax.tree.map(lambda leaf: leaf[flat.reshape(-1)], found.grammar),
            stop=found.stop[flat.reshape(-1)],
            finished=jax.tree.map(lambda new, old: _where(state.done, old, new), finished, state.finished),
            improvable=improvable,
            done=state.done | ~improvable | full | found.at_end.all(-1),
            lengths=state.lengths,
            cache=self.streams.reorder(scored.cache, take(found.parents, index)),
        )

    def _candidates(self, state: BeamState, scores: Float[Array, "R V"], controls: Controls) -> Candidates:
        beams, words = self.streams.beams, scores.shape[1]
        rules, sampling = _repeat((controls.rules, controls.sampling), beams)
        scores = scores if self.streams.guided else jax.nn.log_softmax(scores, axis=-1)
        remaining = jnp.repeat(controls.budgets - state.step, beams)
        scores = jnp.where(self.grammar.allowed(rules, state.grammar, remaining), scores, -jnp.inf)
        scores = jnp.where((sampling.temperature > 0)[:, None], filtered(scores, sampling), scores)
        total = (scores + state.running.scores.reshape(-1)[:, None]).reshape(-1, beams * words)
        _, index = jax.lax.top_k(_shuffled(total, controls, state.step), 2 * beams)
        parents, token = index // words, (index % words).astype(jnp.int32)
        flat = (parents + jnp.arange(len(parents))[:, None] * beams).reshape(-1)
        grammar = jax.tree.map(lambda leaf: leaf[flat], state.grammar)
        grammar = self.grammar.advance(grammar, token.reshape(-1))
        ended, stop, stopped = token == self.grammar.eos, state.stop[flat], jnp.zeros(token.shape, bool)
        if controls.stops is not None:
            which, rules = _repeat((controls.stops.which, controls.rules), 2 * beams)
            stops = controls.stops.replace(which=which)
            stop = jnp.where(self.grammar.may_end(rules, grammar), stops.advance(stop, token.reshape(-1)), 0)
            stopped = stops.reached(stop).reshape(token.shape) & ~ended
        at_end = ended | stopped | (state.step + 1 >= controls.budgets)[:, None]
        taken = state.running.take(parents)
        continued = Beams(
            ids=jax.lax.dynamic_update_slice(taken.ids, token[:, :, None], (0, 0, state.step)),
            scores=take(total, index),
            counts=state.step + 1 - ended.astype(jnp.int32),
            ended=ended,
            stopped=stopped,
            finished=at_end,
        )
        return Candidates(continued, parents, token, grammar, stop, at_end)

    def _finish(self, state: BeamState, found: Candidates, controls: Controls) -> Beams:
        """Merge what has ended into the finished beams; only the best K candidates may enter."""
        length = (state.step + 1).astype(jnp.float32)
        scores = found.beams.scores / (length**controls.length_penalty)[:, None]
        full = state.finished.finished.all(-1) & (controls.early_stopping == _FIRST)
        enters = found.at_end & (jnp.arange(found.token.shape[1]) < self.streams.beams)[None]
        scores = scores + LOW * (full | ~state.improvable)[:, None] + LOW * ~enters
        entering = found.beams.replace(scores=scores, finished=enters)
        merged = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), state.finished, entering)
        return merged.best(merged.scores, self.streams.beams)[0]


def _improvable(step: Int[Array, ""], running: Beams, finished: Beams, controls: Controls) -> Bool[Array, " B"]:
    """Return whether the best running beam may still beat a finished one, by transformers' estimate of its score."""
    penalty = controls.length_penalty
    ahead = (controls.early_stopping == _NEVER) & (penalty > 0)
    length = jnp.where(ahead, controls.budgets, step).astype(jnp.float32)
    best = (running.scores[:, 0] / length**penalty)[:, None]
    worst = jnp.where(finished.finished, finished.scores.min(-1, keepdims=True), LOW)
    return (best > worst).any(-1)


def _shuffled(total: Float[Array, "B W"], controls: Controls, step: Int[Array, ""]) -> Float[Array, "B W"]:
    """Add noise where candidates are drawn: its order is that of draws without replacement."""

    def shuffle(total: Float[Array, "B W"]) -> Float[Array, "B W"]:
        noise = jax.vmap(lambda key: jax.random.gumbel(key, total.shape[1:], jnp.float32))(
            keys(jnp.asarray(controls.sampling.seed), step)
        )
        return jnp.where((controls.sampling.temperature > 0)[:, None], total + noise, total)

    return jax.lax.cond(jnp.any(controls.sampling.temperature > 0), shuffle, lambda total: total, total)


def _repeat(rows: Any, times: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf), times), rows)


def _where(rows: Bool[Array, " B"], a: Array, b: Array) -> Array:
    return jnp.where(rows.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

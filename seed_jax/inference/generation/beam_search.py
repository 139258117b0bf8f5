"""Beam search and beam sampling, equal to transformers' `generate`, with the image grammar inside.

`SamplingParams.length_penalty_on` chooses the rules: "answer" those of version 5, "sequence" those of version 4.30.2,
in which the penalty counts the prompt and not EOS, all K running beams compete when the token budget is spent, and a
candidate that ends counts for whether the finished beams may still be beaten.

B requests, K beams each and 2 K candidates per step, so that K beams can continue even if the best K all end. The
search of one request does not depend on the others.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from seed_jax.inference.generation.batched_sampling_params import BatchedSamplingParams
from seed_jax.inference.generation.decode_loop import DecodeOutputs
from seed_jax.inference.generation.grammar import Grammar, GrammarState
from seed_jax.inference.generation.model_runner import ModelRunner, PromptBatch, StepOutput
from seed_jax.inference.generation.sampling import filter_logits, step_keys
from seed_jax.inference.generation.sampling_params import EARLY_STOPPING
from seed_jax.models.nn.kv_cache import KVCache
from seed_jax.typing import Leaf, Tree

MASKED_SCORE = -1e9  # what transformers adds to the score of a beam that must not be chosen
_FIRST, _NEVER = EARLY_STOPPING.index("first"), EARLY_STOPPING.index("never")


@flax.struct.dataclass
class Beams:
    """C sequences per request, best first; N is the largest token budget.

    Attributes:
        ids: generated token ids.
        scores: log p of running beams, log p / length ** length_penalty of finished ones.
        lengths: generated tokens; EOS does not count.
        hit_eos: ended by EOS.
        hit_stop: ended by a stop string.
        finished: False where the list of finished beams still has a free slot.
    """

    ids: Int[Leaf, "B C N"]
    scores: Float[Leaf, "B C"]
    lengths: Int[Leaf, "B C"]
    hit_eos: Bool[Leaf, "B C"]
    hit_stop: Bool[Leaf, "B C"]
    finished: Bool[Leaf, "B C"]

    def take(self, index: Int[Array, "B D"]) -> "Beams":
        return jax.tree.map(lambda leaf: _take(leaf, index), self)

    def best(self, scores: Float[Array, "B C"], count: int) -> tuple["Beams", Int[Array, "B D"]]:
        """Return the `count` beams with the highest `scores`, which become their scores, and their indices."""
        scores, index = jax.lax.top_k(scores, count)
        return dataclasses.replace(self.take(index), scores=scores), index


@flax.struct.dataclass
class Candidates:
    """Continuations of the running beams by one token.

    Attributes:
        parents: index of the beam that each one continues.
        stop: state of the stop automata.
        ended: whether a candidate ends here: by EOS, a stop string or the token budget.
    """

    beams: Beams
    parents: Int[Leaf, "B C"]
    token: Int[Leaf, "B C"]
    grammar: GrammarState
    stop: Int[Leaf, " BC"]
    ended: Bool[Leaf, "B C"]


@flax.struct.dataclass
class BeamState:
    """The carry of the beam search; R = B K.

    Attributes:
        grammar: of the running beams.
        stop: state of the stop automata of the running beams.
        improvable: whether a running beam may still beat a finished one.
    """

    step: Int[Leaf, ""]
    token: Int[Leaf, " M"]
    running: Beams
    grammar: GrammarState
    stop: Int[Leaf, " R"]
    finished: Beams
    improvable: Bool[Leaf, " B"]
    done: Bool[Leaf, " B"]
    prompt_lengths: Int[Leaf, " M"]
    cache: KVCache


@dataclasses.dataclass(frozen=True)
class BeamSearch:
    """Beam search; with a temperature, candidates are sampled. Hashable, to be a static argument of programs."""

    runner: ModelRunner
    grammar: Grammar

    def prefill(
        self, params: Tree, prompts: PromptBatch, sampling: BatchedSamplingParams, max_new_tokens: int
    ) -> BeamState:
        """Run the prompts and return the state before the first generated token; see `DecodeLoop.prefill`."""
        batch_size, beams = sampling.max_new_tokens.shape[0], self.runner.beams
        conditional = slice(None, None, self.runner.num_branches)
        zeros, false = jnp.zeros((batch_size, beams), jnp.int32), jnp.zeros((batch_size, beams), bool)
        empty = Beams(
            ids=jnp.zeros((batch_size, beams, max_new_tokens), jnp.int32),
            scores=zeros + MASKED_SCORE,
            lengths=zeros,
            hit_eos=false,
            hit_stop=false,
            finished=false,
        )
        grammar = self.grammar.initial_state(prompts.tokens[conditional], prompts.lengths[conditional])
        return BeamState(
            step=jnp.int32(0),
            token=self.runner.last_tokens(prompts),
            # All beams are equal at first: only the first one may be continued.
            running=dataclasses.replace(empty, scores=empty.scores.at[:, 0].set(0.0)),
            grammar=jax.tree.map(lambda leaf: jnp.repeat(leaf, beams), grammar),
            stop=zeros.reshape(-1),
            finished=empty,
            improvable=jnp.ones(batch_size, bool),
            done=sampling.max_new_tokens <= 0,
            prompt_lengths=self.runner.repeat_for_beams(prompts.lengths),
            cache=self.runner.prefill(params, prompts, max_new_tokens),
        )

    def decode(
        self, params: Tree, sampling: BatchedSamplingParams, state: BeamState, until_step: Int[Array, ""]
    ) -> BeamState:
        """Search until there have been `until_step` steps or every request is done."""
        guidance_scale = _repeat(sampling.guidance_scale, self.runner.beams)

        def body(state: BeamState) -> BeamState:
            positions = state.prompt_lengths + state.step - 1
            output = self.runner.decode_step(params, state.token, state.cache, positions, guidance_scale)
            return self._choose(state, output, sampling)

        return jax.lax.while_loop(lambda state: ~state.done.all() & (state.step < until_step), body, state)

    def outputs(self, state: BeamState) -> DecodeOutputs:
        """Return the best finished beam of each request, or the best running one if none is finished."""
        any_finished = state.finished.finished[:, 0]
        best = jax.tree.map(lambda a, b: _where(any_finished, a, b), state.finished, state.running)
        return DecodeOutputs(
            ids=best.ids[:, 0],
            lengths=best.lengths[:, 0],
            done=state.done,
            hit_eos=best.hit_eos[:, 0],
            hit_stop=best.hit_stop[:, 0],
            scores=best.scores[:, 0],
        )

    def _choose(self, state: BeamState, output: StepOutput, sampling: BatchedSamplingParams) -> BeamState:
        candidates = self._candidates(state, output.logits, sampling)
        scores = candidates.beams.scores + MASKED_SCORE * candidates.ended
        running, index = candidates.beams.best(scores, self.runner.beams)
        finished = self._merge_finished(state, candidates, sampling)
        best = jnp.where(sampling.penalize_sequence, candidates.beams.scores[:, 0], running.scores[:, 0])
        improvable = state.improvable & self._improvable(state, best, finished, sampling)
        full = finished.finished.all(-1) & (sampling.early_stopping == _FIRST)
        flat = (index + jnp.arange(len(index))[:, None] * candidates.token.shape[1]).reshape(-1)
        return BeamState(
            step=state.step + 1,
            token=self.runner.repeat_for_branches(_take(candidates.token, index).reshape(-1)),
            running=jax.tree.map(lambda new, old: _where(state.done, old, new), running, state.running),
            grammar=jax.tree.map(lambda leaf: leaf[flat], candidates.grammar),
            stop=candidates.stop[flat],
            finished=jax.tree.map(lambda new, old: _where(state.done, old, new), finished, state.finished),
            improvable=improvable,
            done=state.done | ~improvable | full | candidates.ended.all(-1),
            prompt_lengths=state.prompt_lengths,
            cache=self.runner.reorder_cache(output.cache, _take(candidates.parents, index)),
        )

    def _candidates(self, state: BeamState, logits: Float[Array, "R V"], sampling: BatchedSamplingParams) -> Candidates:
        beams, vocab_size = self.runner.beams, logits.shape[1]
        constraints, sampler = _repeat((sampling.image_constraints, sampling.sampler), beams)
        log_probs = logits if self.runner.guided else jax.nn.log_softmax(logits, axis=-1)
        remaining = jnp.repeat(sampling.max_new_tokens - state.step, beams)
        allowed = self.grammar.allowed_tokens(constraints, state.grammar, remaining)
        log_probs = jnp.where(allowed, log_probs, -jnp.inf)
        log_probs = jnp.where((sampler.temperature > 0)[:, None], filter_logits(log_probs, sampler), log_probs)
        total = (log_probs + state.running.scores.reshape(-1)[:, None]).reshape(-1, beams * vocab_size)
        _, index = jax.lax.top_k(_add_noise(total, sampling, state.step), 2 * beams)
        parents, token = index // vocab_size, (index % vocab_size).astype(jnp.int32)
        flat = (parents + jnp.arange(len(parents))[:, None] * beams).reshape(-1)
        grammar = jax.tree.map(lambda leaf: leaf[flat], state.grammar)
        grammar = self.grammar.advance(grammar, token.reshape(-1))
        hit_eos, stop, hit_stop = token == self.grammar.eos, state.stop[flat], jnp.zeros(token.shape, bool)
        if sampling.stop is not None:
            automaton, constraints = _repeat((sampling.stop.index, sampling.image_constraints), 2 * beams)
            automata = dataclasses.replace(sampling.stop, index=automaton)
            can_finish = self.grammar.can_finish(constraints, grammar)
            stop = jnp.where(can_finish, automata.advance(stop, token.reshape(-1)), 0)
            hit_stop = automata.is_final(stop).reshape(token.shape) & ~hit_eos
        ended = hit_eos | hit_stop | (state.step + 1 >= sampling.max_new_tokens)[:, None]
        parent_beams = state.running.take(parents)
        continued = Beams(
            ids=jax.lax.dynamic_update_slice(parent_beams.ids, token[:, :, None], (0, 0, state.step)),
            scores=_take(total, index),
            lengths=state.step + 1 - hit_eos.astype(jnp.int32),
            hit_eos=hit_eos,
            hit_stop=hit_stop,
            finished=ended,
        )
        return Candidates(continued, parents, token, grammar, stop, ended)

    def _merge_finished(self, state: BeamState, candidates: Candidates, sampling: BatchedSamplingParams) -> Beams:
        """Merge the candidates that ended into the finished beams; only the best K candidates may enter."""
        on_sequence = sampling.penalize_sequence[:, None]
        length = jnp.where(on_sequence, self._prompt_lengths(state) + candidates.beams.lengths, state.step + 1)
        scores = candidates.beams.scores / length.astype(jnp.float32) ** sampling.length_penalty[:, None]
        first = sampling.early_stopping == _FIRST
        full = state.finished.finished.all(-1) & first
        is_best = (jnp.arange(candidates.token.shape[1]) < self.runner.beams)[None]
        stopped = candidates.beams.hit_eos | candidates.beams.hit_stop
        # By the rules of 4.30.2 the K best candidates without EOS enter when the budget is spent, whatever their rank.
        runs_on = ~stopped & (jnp.cumsum(~stopped, axis=1) <= self.runner.beams)
        filled = (state.finished.finished.sum(-1) + (stopped & is_best).sum(-1)) >= self.runner.beams
        enters_sequence = (stopped & is_best) | (candidates.ended & runs_on & ~(first & filled)[:, None])
        enters = jnp.where(on_sequence, enters_sequence, candidates.ended & is_best)
        scores = scores + MASKED_SCORE * (full | ~state.improvable)[:, None] + MASKED_SCORE * ~enters
        entering = dataclasses.replace(candidates.beams, scores=scores, finished=enters)
        merged = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), state.finished, entering)
        return merged.best(merged.scores, self.runner.beams)[0]

    def _improvable(
        self, state: BeamState, best: Float[Array, " B"], finished: Beams, sampling: BatchedSamplingParams
    ) -> Bool[Array, " B"]:
        """Return whether a beam of score `best` may still beat a finished one, by transformers' estimate."""
        penalty = sampling.length_penalty
        assume_longest = (sampling.early_stopping == _NEVER) & (penalty > 0)
        length = jnp.where(assume_longest, sampling.max_new_tokens, state.step + 1)
        length = length + jnp.where(sampling.penalize_sequence, self._prompt_lengths(state)[:, 0], 0)
        attainable = (best / length.astype(jnp.float32) ** penalty)[:, None]
        worst = jnp.where(finished.finished, finished.scores.min(-1, keepdims=True), MASKED_SCORE)
        return (attainable > worst).any(-1)

    def _prompt_lengths(self, state: BeamState) -> Int[Array, "B 1"]:
        lengths = state.prompt_lengths.reshape(len(state.done), -1)
        return lengths[:, :1]


def _add_noise(
    total: Float[Array, "B W"], sampling: BatchedSamplingParams, step: Int[Array, ""]
) -> Float[Array, "B W"]:
    """Add Gumbel noise where candidates are sampled: the top k are then a sample without replacement."""
    temperature = sampling.sampler.temperature

    def add(total: Float[Array, "B W"]) -> Float[Array, "B W"]:
        keys = step_keys(sampling.sampler.seed, jnp.broadcast_to(step, temperature.shape))
        noise = jax.vmap(lambda key: jax.random.gumbel(key, total.shape[1:], jnp.float32))(keys)
        return jnp.where((temperature > 0)[:, None], total + noise, total)

    return jax.lax.cond(jnp.any(temperature > 0), add, lambda total: total, total)


def _take(leaf: Array, index: Int[Array, "B D"]) -> Array:
    return jnp.take_along_axis(leaf, index.reshape(*index.shape, *(1,) * (leaf.ndim - 2)), axis=1)


def _repeat(tree: Any, times: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf), times), tree)


def _where(condition: Bool[Array, " B"], a: Array, b: Array) -> Array:
    return jnp.where(condition.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

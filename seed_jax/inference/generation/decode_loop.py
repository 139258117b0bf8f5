"""The decoding program: prefill, then a loop over a static KV cache with the image grammar inside (spec I.C).

With a draft (`BatchedSamplingParams.draft`) the tokens of an image are decoded in parallel: see `parallel_decoding`.

The loop runs up to a given step and can be continued by the same compiled program, so that tokens can be streamed and a
generation can be interrupted. Every sequence has a counter of its own (`DecodeOutputs.lengths`), which selects its
position, its random numbers and its budget: sequences of one batch may have begun at different times, as those of
`seed_jax.serving.engine` do.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from seed_jax.inference.generation.batched_sampling_params import BatchedSamplingParams
from seed_jax.inference.generation.grammar import Grammar, GrammarState
from seed_jax.inference.generation.model_runner import ModelRunner, PromptBatch, StepOutput
from seed_jax.inference.generation.parallel_decoding import Window, image_progress, image_window, single_token_window
from seed_jax.inference.generation.sampling import sample_tokens
from seed_jax.models.nn.kv_cache import KVCache
from seed_jax.typing import Leaf, Tree


@flax.struct.dataclass
class DecodeOutputs:
    """Generated tokens of a batch.

    Attributes:
        ids: generated token ids; N is the largest token budget of the batch, or what the caller reads at a time.
        lengths: how many ids were generated; EOS does not count.
        done: whether a sequence is finished: by EOS (`hit_eos`), a stop string (`hit_stop`) or its token budget.
        scores: for beam search, log p / length ** length_penalty.
        log_probs: log-probability of each id among the tokens that the grammar allowed, before temperature and filters;
            None if they are not recorded.
        num_steps: decode steps (forward passes of the model) so far; None if they are not counted.
    """

    ids: Int[Leaf, "B N"]
    lengths: Int[Leaf, " B"]
    done: Bool[Leaf, " B"]
    hit_eos: Bool[Leaf, " B"]
    hit_stop: Bool[Leaf, " B"]
    scores: Float[Leaf, " B"] | None = None
    log_probs: Float[Leaf, "B N"] | None = None
    num_steps: Int[Leaf, ""] | None = None


@flax.struct.dataclass
class DecodeState:
    """The carry of the decode loop.

    Attributes:
        step: decode steps (forward passes) since the state was made.
        token: last token of each sequence, whose successor the next step chooses.
        offset: how many tokens of each sequence precede the first column of `outputs.ids`.
        draft: with parallel decoding, token ids that the codes of each sequence's image are guessed to have.
    """

    step: Int[Leaf, ""]
    token: Int[Leaf, " M"]
    outputs: DecodeOutputs
    offset: Int[Leaf, " B"]
    grammar: GrammarState
    stop: Int[Leaf, " B"]
    prompt_lengths: Int[Leaf, " M"]
    cache: KVCache
    draft: Int[Leaf, "B Q"] | None = None


@dataclasses.dataclass(frozen=True)
class DecodeLoop:
    """Greedy decoding and sampling; hashable, to be a static argument of compiled programs."""

    runner: ModelRunner
    grammar: Grammar

    def prefill(
        self, params: Tree, prompts: PromptBatch, sampling: BatchedSamplingParams, max_new_tokens: int
    ) -> DecodeState:
        """Run the prompts and return the state before the first generated token.

        Args:
            params: parameters of the model.
            prompts: padded prompts.
            sampling: sampling parameters of the batch.
            max_new_tokens: length of the output arrays, at least the largest token budget.
        """
        batch_size = sampling.max_new_tokens.shape[0]
        zeros, false = jnp.zeros(batch_size, jnp.int32), jnp.zeros(batch_size, bool)
        conditional = slice(None, None, self.runner.num_branches)
        return DecodeState(
            step=jnp.int32(0),
            token=self.runner.last_tokens(prompts),
            outputs=DecodeOutputs(
                ids=jnp.zeros((batch_size, max_new_tokens), jnp.int32),
                lengths=zeros,
                done=sampling.max_new_tokens <= 0,
                hit_eos=false,
                hit_stop=false,
            ),
            offset=zeros,
            grammar=self.grammar.initial_state(prompts.tokens[conditional], prompts.lengths[conditional]),
            stop=zeros,
            prompt_lengths=prompts.lengths,
            cache=self.runner.prefill(params, prompts, max_new_tokens),
            draft=None if sampling.draft is None else jnp.asarray(sampling.draft),
        )

    def decode(
        self, params: Tree, sampling: BatchedSamplingParams, state: DecodeState, until_step: Int[Array, ""]
    ) -> DecodeState:
        """Run decode steps until there have been `until_step` or every sequence is done."""

        def unfinished(state: DecodeState) -> Bool[Array, ""]:
            return ~state.outputs.done.all() & (state.step < until_step)

        def decode_token(state: DecodeState) -> DecodeState:
            token = state.token[:: self.runner.num_branches]
            window = single_token_window(token, self.grammar, state.grammar)
            positions = self._positions(state, window)[:, 0]
            output = self.runner.decode_step(params, state.token, state.cache, positions, sampling.guidance_scale)
            output = dataclasses.replace(output, logits=output.logits[:, None])
            return self._choose(state, window, output, sampling)

        if sampling.draft is None:
            return jax.lax.while_loop(unfinished, decode_token, state)

        def decode_image(state: DecodeState) -> DecodeState:
            token = state.token[:: self.runner.num_branches]
            progress = self._image_progress(state, sampling)
            assert state.draft is not None  # as sampling.draft
            window = image_window(token, state.draft, self.grammar, state.grammar, progress)
            # The last tokens of a prompt and its negative prompt differ.
            drafted = self.runner.repeat_for_branches(window.tokens[:, 1:])
            tokens, positions = jnp.concatenate([state.token[:, None], drafted], axis=1), self._positions(state, window)
            output = self.runner.decode_window(params, tokens, state.cache, positions, sampling.guidance_scale)
            return self._choose(state, window, output, sampling)

        def drafts(state: DecodeState) -> Bool[Array, ""]:
            return jnp.any(self._image_progress(state, sampling) < self.grammar.tokens_per_image)

        # Two loops in a loop instead of a condition: a loop updates the cache in place.
        def decode_both(state: DecodeState) -> DecodeState:
            state = jax.lax.while_loop(lambda state: unfinished(state) & drafts(state), decode_image, state)
            return jax.lax.while_loop(lambda state: unfinished(state) & ~drafts(state), decode_token, state)

        return jax.lax.while_loop(unfinished, decode_both, state)

    def outputs(self, state: DecodeState) -> DecodeOutputs:
        return dataclasses.replace(state.outputs, num_steps=state.step)

    def _image_progress(self, state: DecodeState, sampling: BatchedSamplingParams) -> Int[Array, " B"]:
        remaining = sampling.max_new_tokens - state.outputs.lengths
        constraints = sampling.image_constraints
        return image_progress(self.grammar, constraints, state.grammar, remaining, state.outputs.done)

    def _positions(self, state: DecodeState, window: Window) -> Int[Array, "M W"]:
        """Return the position of each token of a window; in the first step that of the prompt's last token."""
        # Finished sequences and tokens that do not exist leave the cache as it is: positions beyond the last slot are
        # dropped.
        exists = self.runner.repeat_for_branches(window.valid & ~state.outputs.done[:, None])
        last = state.prompt_lengths + self.runner.repeat_for_branches(state.outputs.lengths) - 1
        return jnp.where(exists, last[:, None] + jnp.arange(window.tokens.shape[1])[None], state.cache.slots)

    def _choose(
        self, state: DecodeState, window: Window, output: StepOutput, sampling: BatchedSamplingParams
    ) -> DecodeState:
        """Choose a token after each token of a window, and accept those that sequential decoding would choose."""
        before, budget = state.outputs, sampling.max_new_tokens
        logits, choices = self._sample(state, window, output.logits, sampling)
        active = ~before.done
        # Only the last accepted token can end an answer: the others equal the draft, which are image tokens.
        count = jnp.minimum(window.count_accepted(choices), jnp.maximum(budget - before.lengths, 1))
        token = _take_column(choices, count - 1)
        hit_eos = before.hit_eos | (active & (token == self.grammar.eos))
        lengths = before.lengths + jnp.where(active, count, 0) - (active & hit_eos)
        grammar = jax.tree.map(lambda leaf: _take_column(leaf, count - 1), window.grammar)
        grammar = self.grammar.advance(grammar, token)
        stop, hit_stop = state.stop, before.hit_stop
        if sampling.stop is not None:
            can_finish = self.grammar.can_finish(sampling.image_constraints, grammar)
            # Image tokens interrupt the text; text before the required images does not count towards a stop string.
            stop = jnp.where(count > 1, 0, stop)
            stop = jnp.where(can_finish, sampling.stop.advance(stop, token), 0)
            hit_stop = hit_stop | (active & ~hit_eos & sampling.stop.is_final(stop))
        # Comparisons instead of a scatter: they stay within the shards of the batch.
        index = jnp.arange(before.ids.shape[1])[None] - (before.lengths - state.offset)[:, None]
        is_column = (index >= 0) & (index < count[:, None])
        index = jnp.clip(index, 0, choices.shape[1] - 1)
        log_probs = before.log_probs
        if log_probs is not None:
            chosen = jnp.take_along_axis(logits, choices[:, :, None], axis=2)[:, :, 0]
            chosen = chosen - jax.nn.logsumexp(logits, axis=2)
            log_probs = jnp.where(is_column, jnp.take_along_axis(chosen, index, axis=1), log_probs)
        outputs = dataclasses.replace(
            before,
            ids=jnp.where(is_column, jnp.take_along_axis(choices, index, axis=1), before.ids),
            lengths=lengths,
            done=before.done | hit_eos | hit_stop | (lengths >= budget),
            hit_eos=hit_eos,
            hit_stop=hit_stop,
            log_probs=log_probs,
        )
        draft = state.draft
        if draft is not None and sampling.draft is not None:
            draft = jnp.where(grammar.inside_image[:, None], window.next_draft(choices, draft), sampling.draft)
        return DecodeState(
            step=state.step + 1,
            token=self.runner.repeat_for_branches(token),
            outputs=outputs,
            offset=state.offset,
            grammar=grammar,
            stop=stop,
            prompt_lengths=state.prompt_lengths,
            cache=output.cache,
            draft=draft,
        )

    def _sample(
        self, state: DecodeState, window: Window, logits: Float[Array, "B W V"], sampling: BatchedSamplingParams
    ) -> tuple[Float[Array, "B W V"], Int[Array, "B W"]]:
        """Return the logits of the allowed tokens, and the tokens chosen from them with the random numbers of each."""
        width = logits.shape[1]

        def flatten(x: Array) -> Array:
            return x.reshape(-1, *x.shape[2:])

        def repeat(tree: Any) -> Any:
            return jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf), width, axis=0), tree)

        turn = state.outputs.lengths[:, None] + jnp.arange(width)[None]
        remaining = flatten(sampling.max_new_tokens[:, None] - turn)
        constraints = repeat(sampling.image_constraints)
        allowed = self.grammar.allowed_tokens(constraints, jax.tree.map(flatten, window.grammar), remaining)
        masked = jnp.where(allowed, flatten(logits), -jnp.inf)
        choices = sample_tokens(masked, repeat(sampling.sampler), flatten(turn))
        return masked.reshape(logits.shape), choices.reshape(turn.shape)


def _take_column(x: Shaped[Array, "B W"], column: Int[Array, " B"]) -> Shaped[Array, " B"]:
    return jnp.take_along_axis(x, column[:, None], axis=1)[:, 0]

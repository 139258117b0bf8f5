"""The decoding program: prefill, then a loop over a static KV cache with the image grammar inside (spec I.C).

The loop runs up to a given step and can be continued by the same compiled program, so that tokens can be streamed and a
generation can be interrupted. Every sequence has a counter of its own (`DecodeOutputs.lengths`), which selects its
position, its random numbers and its budget: sequences of one batch may have begun at different times, as those of
`seed_jax.serving.engine` do.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from seed_jax.inference.generation.batched_sampling_params import BatchedSamplingParams
from seed_jax.inference.generation.grammar import Grammar, GrammarState
from seed_jax.inference.generation.model_runner import ModelRunner, PromptBatch, StepOutput
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
    """

    ids: Int[Leaf, "B N"]
    lengths: Int[Leaf, " B"]
    done: Bool[Leaf, " B"]
    hit_eos: Bool[Leaf, " B"]
    hit_stop: Bool[Leaf, " B"]
    scores: Float[Leaf, " B"] | None = None
    log_probs: Float[Leaf, "B N"] | None = None


@flax.struct.dataclass
class DecodeState:
    """The carry of the decode loop.

    Attributes:
        step: decode steps since the state was made.
        token: last token of each sequence, whose successor the next step chooses.
        offset: how many tokens of each sequence precede the first column of `outputs.ids`.
    """

    step: Int[Leaf, ""]
    token: Int[Leaf, " M"]
    outputs: DecodeOutputs
    offset: Int[Leaf, " B"]
    grammar: GrammarState
    stop: Int[Leaf, " B"]
    prompt_lengths: Int[Leaf, " M"]
    cache: KVCache


@dataclasses.dataclass(frozen=True)
class DecodeLoop:
    """Greedy decoding and sampling, token by token; hashable, to be a static argument of compiled programs."""

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
        )

    def decode(
        self, params: Tree, sampling: BatchedSamplingParams, state: DecodeState, until_step: Int[Array, ""]
    ) -> DecodeState:
        """Run decode steps until there have been `until_step` or every sequence is done."""

        def unfinished(state: DecodeState) -> Bool[Array, ""]:
            return ~state.outputs.done.all() & (state.step < until_step)

        def body(state: DecodeState) -> DecodeState:
            lengths = self.runner.repeat_for_branches(state.outputs.lengths)
            positions = state.prompt_lengths + lengths - 1  # in the first step that of the prompt's last token
            # Finished sequences leave the cache as it is: positions beyond the last slot are dropped.
            done = self.runner.repeat_for_branches(state.outputs.done)
            positions = jnp.where(done, state.cache.slots, positions)
            output = self.runner.decode_step(params, state.token, state.cache, positions, sampling.guidance_scale)
            return self._choose(state, output, sampling)

        return jax.lax.while_loop(unfinished, body, state)

    def outputs(self, state: DecodeState) -> DecodeOutputs:
        return state.outputs

    def _choose(self, state: DecodeState, output: StepOutput, sampling: BatchedSamplingParams) -> DecodeState:
        before, budget = state.outputs, sampling.max_new_tokens
        allowed = self.grammar.allowed_tokens(sampling.image_constraints, state.grammar, budget - before.lengths)
        logits = jnp.where(allowed, output.logits, -jnp.inf)
        token = sample_tokens(logits, sampling.sampler, before.lengths)
        active = ~before.done
        hit_eos = before.hit_eos | (active & (token == self.grammar.eos))
        lengths = before.lengths + (active & ~hit_eos)
        grammar = self.grammar.advance(state.grammar, token)
        stop, hit_stop = state.stop, before.hit_stop
        if sampling.stop is not None:
            can_finish = self.grammar.can_finish(sampling.image_constraints, grammar)
            # Text before the required images does not count towards a stop string.
            stop = jnp.where(can_finish, sampling.stop.advance(stop, token), 0)
            hit_stop = hit_stop | (active & ~hit_eos & sampling.stop.is_final(stop))
        # A comparison instead of a scatter: it stays within the shards of the batch.
        is_column = jnp.arange(before.ids.shape[1])[None] == (before.lengths - state.offset)[:, None]
        log_probs = before.log_probs
        if log_probs is not None:
            chosen = jnp.take_along_axis(logits, token[:, None], axis=1) - jax.nn.logsumexp(logits, 1, keepdims=True)
            log_probs = jnp.where(is_column, chosen, log_probs)
        outputs = dataclasses.replace(
            before,
            ids=jnp.where(is_column, token[:, None], before.ids),
            lengths=lengths,
            done=before.done | hit_eos | hit_stop | (lengths >= budget),
            hit_eos=hit_eos,
            hit_stop=hit_stop,
            log_probs=log_probs,
        )
        return DecodeState(
            step=state.step + 1,
            token=self.runner.repeat_for_branches(token),
            outputs=outputs,
            offset=state.offset,
            grammar=grammar,
            stop=stop,
            prompt_lengths=state.prompt_lengths,
            cache=output.cache,
        )

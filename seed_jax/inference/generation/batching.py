"""Requests, validated and grouped into batches that one compiled program answers."""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.linen.spmd import with_logical_constraint
from jax.sharding import Mesh

from seed_jax import sharding
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from seed_jax.inference.generation.batched_sampling_params import BatchedSamplingParams
from seed_jax.inference.generation.grammar import Grammar
from seed_jax.inference.generation.model_runner import PromptBatch
from seed_jax.inference.generation.parallel_decoding import first_draft
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.generation.stop_strings import StopStringCompiler
from seed_jax.models.nn.decoder_only import DecoderOnlyConfig
from seed_jax.models.nn.kv_cache import KVCache

SMALLEST_BUCKET = 32


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt to answer.

    Attributes:
        prompt: token ids, BOS included.
        sampling_params: decoding options.
        negative_prompt: token ids that guidance moves away from; by default BOS alone.
    """

    prompt: Sequence[int]
    sampling_params: SamplingParams = SamplingParams()
    negative_prompt: Sequence[int] | None = None

    @property
    def guided(self) -> bool:
        return self.sampling_params.guided

    @property
    def program(self) -> tuple[int, bool, bool]:
        """What must be equal in requests that one compiled program answers: beams, guidance, parallel decoding."""
        return self.sampling_params.beams, self.guided, self.sampling_params.parallel_decoding


@dataclasses.dataclass(frozen=True)
class RequestBatch:
    """Requests as arrays.

    Attributes:
        prompts: prompts, and with guidance negative prompts, padded to a bucket.
        sampling: sampling parameters; padding of the batch has a token budget of 0.
        beams: beams per request.
        guided: whether every prompt has a negative counterpart.
        max_new_tokens: largest token budget, rounded up to a bucket.
    """

    prompts: PromptBatch
    sampling: BatchedSamplingParams
    beams: int
    guided: bool
    max_new_tokens: int


def bucket(size: int, limit: int | None = None, smallest: int = SMALLEST_BUCKET) -> int:
    """Round `size` up to a power of two of at least `smallest`; never more than `limit`."""
    rounded = max(smallest, 1 << (size - 1).bit_length())
    return rounded if limit is None else min(rounded, limit)


def group_requests(requests: Sequence[Request], batch_size: int | None) -> Iterator[list[int]]:
    """Yield batches (indices of requests) that share a program."""
    groups: dict[tuple[int, bool, bool], list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(request.program, []).append(index)
    for indices in groups.values():
        size = batch_size or len(indices)
        yield from (indices[start : start + size] for start in range(0, len(indices), size))


@dataclasses.dataclass(frozen=True)
class Batcher:
    """Turns requests to one model into batches.

    Attributes:
        num_shards: batch sizes are rounded up to a multiple of it.
        max_length: context length, prompt and answer together; by default the model's.
        draft_codes: with parallel decoding, the first draft of images whose prompt has none.
    """

    config: DecoderOnlyConfig
    vocabulary: Vocabulary
    grammar: Grammar
    stop_strings: StopStringCompiler
    num_shards: int = 1
    max_length: int | None = None
    draft_codes: tuple[int, ...] | None = None

    @property
    def context_length(self) -> int:
        """Return the context length, prompt and answer together."""
        return self.config.max_length if self.max_length is None else self.max_length

    def token_budget(self, request: Request, name: str = "The prompt") -> int:
        """Return how many tokens may be generated: max_new_tokens, limited by the context length.

        Args:
            request: the request.
            name: what an error message calls it.

        Raises:
            UserError: the prompt is empty, too long, of another vocabulary, or leaves no room for required images.
        """
        sampling_params, limit = request.sampling_params, self.context_length
        self._check_ids(request.prompt, name)
        longest = len(request.prompt)
        if request.guided and request.negative_prompt is not None:
            self._check_ids(request.negative_prompt, f"{name}'s negative prompt")
            longest = max(longest, len(request.negative_prompt))
        budget = min(sampling_params.max_new_tokens, limit - longest)
        required = self.grammar.min_new_tokens(sampling_params.image_constraint, request.prompt)
        if required > budget:
            raise UserError(
                f"{name} leaves room for {budget} new tokens (max_new_tokens and the context of {limit} tokens "
                f"considered), but the required images need {required}: raise max_new_tokens, or shorten the prompt."
            )
        return budget

    def batch(self, requests: Sequence[Request], names: Sequence[str]) -> RequestBatch:
        """Return requests of one program as arrays, padded to the sizes of a compiled one."""
        first, bos = requests[0], [self.vocabulary.bos]
        budgets = [self.token_budget(request, name) for request, name in zip(requests, names, strict=True)]
        padding = self.padded_batch_size(len(requests)) - len(requests)
        params = [request.sampling_params for request in requests] + [SamplingParams()] * padding
        padded = [*requests, *[Request(bos)] * padding]
        draft = None
        if first.sampling_params.parallel_decoding:
            draft = [first_draft(request.prompt, self.vocabulary, self.draft_codes) for request in padded]
        sampling = BatchedSamplingParams.stack(params, budgets + [0] * padding, self.stop_strings, draft)
        prompts: list[Sequence[int]] = []
        for request in padded:
            prompts.append(request.prompt)
            if first.guided:
                prompts.append(request.negative_prompt or bos)
        return RequestBatch(
            prompts=self.pad(prompts),
            sampling=sampling,
            beams=first.sampling_params.beams,
            guided=first.guided,
            max_new_tokens=bucket(max(budgets), self.context_length),
        )

    def padded_batch_size(self, count: int) -> int:
        """Return the batch size for `count` requests: a power of two, rounded up to a multiple of the shards."""
        size = bucket(count, smallest=1)
        return -(-size // self.num_shards) * self.num_shards

    def pad(self, prompts: Sequence[Sequence[int]]) -> PromptBatch:
        """Return prompts as arrays, padded on the right to a bucket."""
        length = bucket(max(map(len, prompts)), self.context_length)
        tokens: Any = np.full((len(prompts), length), self.vocabulary.pad, np.int32)
        for index, prompt in enumerate(prompts):
            tokens[index, : len(prompt)] = prompt
        lengths: Any = np.array([len(prompt) for prompt in prompts], np.int32)
        return PromptBatch(tokens, lengths)

    def _check_ids(self, ids: Sequence[int], name: str) -> None:
        limit = self.context_length
        if not 0 < len(ids) < limit:
            raise UserError(
                f"{name} has {len(ids)} tokens, expected 1 to {limit - 1}: the model's context is {limit} tokens, "
                "prompt and answer together."
            )
        if not 0 <= min(ids) <= max(ids) < self.config.num_input_tokens:
            raise UserError(
                f"{name} has token ids outside 0 to {self.config.num_input_tokens - 1}: encode it with this model's "
                "vocabulary."
            )


@dataclasses.dataclass(frozen=True)
class BatchSharder:
    """Moves batches to the device, or shards them over a mesh."""

    mesh: Mesh | None = None
    # Programs of several threads must reach all devices in one order: else their collectives wait for each other.
    _lock: Any = dataclasses.field(default_factory=threading.RLock, repr=False, compare=False)

    @property
    def num_shards(self) -> int:
        return 1 if self.mesh is None else sharding.num_batch_shards(self.mesh)

    @contextlib.contextmanager
    def mesh_context(self) -> Iterator[None]:
        """Make the mesh and the logical axis rules visible to programs that are called inside."""
        with contextlib.ExitStack() as stack:
            if self.mesh is not None:
                stack.enter_context(self._lock)
                stack.enter_context(jax.set_mesh(self.mesh))
                stack.enter_context(nn.logical_axis_rules(sharding.LOGICAL_AXIS_RULES))
            yield

    def shard(self, tree: Any) -> Any:
        """Shard every array of a tree along its first axis."""
        return jax.device_put(tree, None if self.mesh is None else sharding.batch_sharding(self.mesh))

    def shard_sampling(self, sampling: BatchedSamplingParams) -> BatchedSamplingParams:
        """Shard sampling parameters; the transition tables of stop strings are replicated."""
        if self.mesh is None or sampling.stop is None:
            return self.shard(sampling)
        stop = dataclasses.replace(
            sampling.stop,
            transitions=jax.device_put(sampling.stop.transitions, sharding.replicated_sharding(self.mesh)),
            index=self.shard(sampling.stop.index),
        )
        return dataclasses.replace(self.shard(dataclasses.replace(sampling, stop=None)), stop=stop)


def constrain_batch_axis(state: Any) -> Any:
    """Shard the carry of a decode loop over its batch axis, before the first step as after it.

    Without the constraint the second call would have other input shardings than the first and compile again.
    """

    def constrain(leaf: Any) -> Any:
        if isinstance(leaf, KVCache) or leaf.ndim == 0:
            return leaf  # the cache has constraints of its own where it is written
        return with_logical_constraint(leaf, ("batch", *[None] * (leaf.ndim - 1)))

    return jax.tree.map(constrain, state, is_leaf=lambda leaf: isinstance(leaf, KVCache))

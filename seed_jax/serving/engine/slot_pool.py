"""The arrays of the engine on the device, and the three compiled programs that change them.

One KV cache holds all slots. Beside it is a store of blocks, the prefix cache. Every array is donated to the program
that changes it, so that it exists once.

On a CPU without a mesh, where the time of a program grows with the sequences and positions in it, prompts are prefilled
in chunks of several sizes, and a decode chunk takes as few slots as it can. It copies their keys and values to an array
per layer at its beginning (`KVCacheLayers`), which saves a copy at each of its steps.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.spmd import with_logical_constraint
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from seed_jax.inference.generation.batched_sampling_params import BatchedSamplingParams
from seed_jax.inference.generation.batching import constrain_batch_axis
from seed_jax.inference.generation.decode_loop import DecodeLoop, DecodeOutputs, DecodeState
from seed_jax.inference.generation.generator import Generator
from seed_jax.inference.generation.grammar import GrammarState
from seed_jax.inference.generation.model_runner import SlotRunner
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.memory_plan import SlotPoolSize
from seed_jax.inference.programs import shared
from seed_jax.models.nn.kv_cache import CACHE_AXES, KVCache, KVCacheLayers, KVCacheRow
from seed_jax.typing import Leaf, Tree


@flax.struct.dataclass
class SlotInputs:
    """What the host tells the device before a decode chunk.

    Attributes:
        num_steps: decode steps of the chunk.
        active: False ends what a slot decodes: it is free, is being prefilled, or its request was cancelled.
        joins: slots that begin to decode a prompt now; the next four arrays are theirs.
        token: last token of the prompt.
        prompt_lengths: tokens of the prompt.
        grammar: state after the prompt.
        sampling: sampling parameters.
    """

    num_steps: Int[Leaf, ""]
    active: Bool[Leaf, " S"]
    joins: Bool[Leaf, " S"]
    token: Int[Leaf, " S"]
    prompt_lengths: Int[Leaf, " S"]
    grammar: GrammarState
    sampling: BatchedSamplingParams


@flax.struct.dataclass
class ChunkOutputs:
    """What a decode chunk generated; S slots, N decode steps.

    Attributes:
        ids: tokens of each slot, from its first one in this chunk.
        log_probs: of the tokens, see `DecodeOutputs.log_probs`.
        lengths: tokens of each slot since it joined.
        done: whether a slot's answer is finished.
        hit_eos: whether EOS finished it.
    """

    ids: Int[Leaf, "S N"]
    log_probs: Float[Leaf, "S N"]
    lengths: Int[Leaf, " S"]
    done: Bool[Leaf, " S"]
    hit_eos: Bool[Leaf, " S"]


@dataclasses.dataclass(frozen=True)
class SlotPrograms:
    """The programs of a pool of slots, which pools of equal models and sizes share.

    Attributes:
        loop: the model and the grammar.
        num_blocks: blocks of the prefix cache.
        block_size: their tokens.
        max_chunk: largest number of decode steps of a chunk.
        copies_cache: see `copies_cache`.
        mesh: that of the generator, whose context the programs are traced in.
    """

    loop: DecodeLoop
    num_blocks: int
    block_size: int
    max_chunk: int
    copies_cache: bool
    mesh: Mesh | None

    @functools.cached_property
    def init(self) -> jax.stages.Wrapped:
        """(slots, their length) -> empty slots and prefix cache."""
        return jax.jit(self._init, static_argnums=(0, 1))

    @functools.cached_property
    def prefill(self) -> jax.stages.Wrapped:
        """(params, cache, store, tokens, [slot, start, block]) -> cache and store with a part of a prompt."""
        return jax.jit(self._prefill, donate_argnums=(1, 2))

    @functools.cached_property
    def load(self) -> jax.stages.Wrapped:
        """(cache, store, blocks, [slot, start, count]) -> cache with blocks of the store."""
        return jax.jit(self._load, donate_argnums=0)

    @functools.cached_property
    def decode(self) -> jax.stages.Wrapped:
        """(params, state, inputs, positions, slots) -> state after a decode chunk, and what it generated."""
        return jax.jit(self._decode, static_argnums=(3, 4), donate_argnums=1)

    @property
    def num_compiled(self) -> int:
        """Return how many programs have been compiled, for all pools that share them."""
        programs: Any = (self.init, self.prefill, self.load, self.decode)
        return sum(program._cache_size() for program in programs)

    def _init(self, num_slots: int, length: int) -> tuple[DecodeState, KVCache]:
        zeros, false = jnp.zeros(num_slots, jnp.int32), jnp.zeros(num_slots, bool)
        model = self.loop.runner.model
        state = DecodeState(
            step=jnp.int32(0),
            token=zeros,
            outputs=DecodeOutputs(
                ids=jnp.zeros((num_slots, 0), jnp.int32), lengths=zeros, done=~false, hit_eos=false, hit_stop=false
            ),
            offset=zeros,
            grammar=GrammarState(false, zeros, zeros),
            stop=zeros,
            prompt_lengths=zeros + 1,
            cache=model.init_cache(num_slots, length),
        )
        layers, _, heads, _, size = state.cache.k.shape
        # The last block is scratch, for chunks that are not to be stored.
        blocks = jnp.zeros((layers, self.num_blocks + 1, heads, self.block_size, size), state.cache.k.dtype)
        return constrain_batch_axis(state), _constrain_blocks(KVCache(blocks, blocks))

    def _prefill(
        self, params: Tree, cache: KVCache, store: KVCache, tokens: Int[Array, "1 C"], where: Int[Array, " 3"]
    ) -> tuple[KVCache, KVCache]:
        slot, start, block = where
        row = KVCacheRow(cache.k, cache.v, slot)
        # What padding writes is overwritten before a position sees it.
        positions = start + jnp.arange(tokens.shape[1])[None]
        filled = self.loop.runner.append(params, tokens, row, positions)
        cache = KVCache(filled.k, filled.v)
        if tokens.shape[1] < self.block_size:
            return cache, store  # no full block

        def save(stored: Array, written: Array) -> Array:
            layers, _, heads, _, size = stored.shape
            chunk = jax.lax.dynamic_slice(written, (0, slot, 0, start, 0), (layers, 1, heads, self.block_size, size))
            return jax.lax.dynamic_update_slice(stored, chunk, (0, block, 0, 0, 0))

        store = KVCache(save(store.k, filled.k), save(store.v, filled.v))
        return cache, _constrain_blocks(store)

    def _load(self, cache: KVCache, store: KVCache, blocks: Int[Array, " P"], where: Int[Array, " 3"]) -> KVCache:
        slot, start, count = where

        def copy(index: Int[Array, ""], cache: KVCache) -> KVCache:
            def copy_one(written: Array, stored: Array) -> Array:
                block = jax.lax.dynamic_slice_in_dim(stored, blocks[index], 1, axis=1)
                place = (0, slot, 0, start + index * self.block_size, 0)
                return with_logical_constraint(jax.lax.dynamic_update_slice(written, block, place), CACHE_AXES)

            return KVCache(copy_one(cache.k, store.k), copy_one(cache.v, store.v))

        return jax.lax.fori_loop(0, count, copy, cache)

    def _decode(
        self, params: Tree, pool: DecodeState, inputs: SlotInputs, length: int, slots: int
    ) -> tuple[DecodeState, ChunkOutputs]:
        state = pool
        if slots < len(inputs.joins):
            state, inputs = _first_slots(pool, slots), _first_slots(inputs, slots)
        joins = jnp.asarray(inputs.joins)

        def begin(fresh: Any, running: Any) -> Array:
            return jnp.where(joins, fresh, running)

        before = state.outputs
        lengths = begin(0, before.lengths)
        shape = (len(joins), self.max_chunk)
        state = dataclasses.replace(
            state,
            step=jnp.int32(0),
            token=begin(inputs.token, state.token),
            outputs=DecodeOutputs(
                ids=jnp.zeros(shape, jnp.int32),
                lengths=lengths,
                done=begin(False, before.done) | ~jnp.asarray(inputs.active),
                hit_eos=begin(False, before.hit_eos),
                hit_stop=before.hit_stop,
                log_probs=jnp.zeros(shape, jnp.float32),
            ),
            offset=lengths,
            grammar=jax.tree.map(begin, inputs.grammar, state.grammar),
            prompt_lengths=begin(inputs.prompt_lengths, state.prompt_lengths),
            cache=_split_layers(pool.cache, length, slots)
            if self.copies_cache
            else dataclasses.replace(pool.cache, read_length=length),
        )
        begun = state
        state = self.loop.decode(params, inputs.sampling, constrain_batch_axis(state), jnp.asarray(inputs.num_steps))
        after = state.outputs
        assert after.log_probs is not None
        chunk = ChunkOutputs(after.ids, after.log_probs, after.lengths, after.done, after.hit_eos)
        # Outputs must not share buffers with the state, which the next chunk gets donated before they are read.
        chunk = jax.lax.optimization_barrier(jax.tree.map(jnp.copy, chunk))
        outputs = dataclasses.replace(after, ids=jnp.zeros((shape[0], 0), jnp.int32), log_probs=None)
        if isinstance(state.cache, KVCacheLayers):
            cache = _write_back(pool.cache, state.cache, begun, self.max_chunk)
        else:
            cache = dataclasses.replace(state.cache, read_length=None)
        state = dataclasses.replace(state, outputs=outputs, cache=cache)
        if slots < len(pool.token):
            state = _replace_first(pool, state)
        return constrain_batch_axis(state), chunk


_shared_programs = shared(SlotPrograms)


class SlotPool:
    """Slots on the device that decode together.

    Args:
        generator: the language model; its parameters, mesh and grammar are used.
        size: slots, their length, and the blocks of the prefix cache.
        max_chunk: largest number of decode steps of a chunk.
        decode_lengths: positions that a decode step may attend to, in ascending order up to the length of a slot.
    """

    def __init__(self, generator: Generator, size: SlotPoolSize, max_chunk: int, decode_lengths: tuple[int, ...]):
        on_cpu = copies_cache(generator)
        self._generator = generator
        self._decode_lengths = decode_lengths
        self._prefill_sizes = _with_quarter(size.prefill_chunk) if on_cpu else (size.prefill_chunk,)
        self._decode_slots = _decode_slots(size.slots) if on_cpu else (size.slots,)
        self._inputs = self._empty_inputs(size.slots)
        loop = DecodeLoop(SlotRunner(generator.model), generator.grammar)
        self._programs = _shared_programs(
            loop,
            num_blocks=size.prefix_cache_blocks,
            block_size=size.prefill_chunk,
            max_chunk=max_chunk,
            copies_cache=on_cpu,
            mesh=generator.sharder.mesh,
        )
        with generator.sharder.mesh_context():
            self._state, self._store = self._programs.init(size.slots, size.length)

    @property
    def num_programs(self) -> int:
        """Return how many programs have been compiled."""
        return self._programs.num_compiled

    def compile(self) -> None:
        """Compile all programs, by running them on empty slots; the second round meets the shardings of the first."""
        for _ in range(2):
            for size in self._prefill_sizes:
                self.prefill(0, [self._generator.vocabulary.pad] * size, 0, None)
            self.load(0, [0], 0)
            for length in self._decode_lengths:
                for slots in self._decode_slots:
                    self.decode(length, slots, 1)
        jax.block_until_ready(self._state)

    def lower(self) -> dict[str, jax.stages.Lowered]:
        """Return the programs before their compilation, to look at what they need: prefill, and the longest decode."""
        params, state = self._generator.params, self._state
        tokens, where = np.zeros((1, self._programs.block_size), np.int32), np.zeros(3, np.int32)
        longest = (self._decode_lengths[-1], self._decode_slots[-1])
        with self._generator.sharder.mesh_context():
            return {
                "prefill": self._programs.prefill.lower(params, state.cache, self._store, tokens, where),
                "decode": self._programs.decode.lower(params, state, self._inputs, *longest),
            }

    def prefill(self, slot: int, tokens: Sequence[int], start: int, block: int | None) -> None:
        """Prefill up to `block_size` tokens of a prompt.

        Args:
            slot: the slot.
            tokens: the tokens.
            start: position of the first one, a multiple of the block size.
            block: block of the prefix cache that stores them, too; None stores nothing.
        """
        size = next(size for size in self._prefill_sizes if size >= len(tokens))
        padded = np.full((1, size), self._generator.vocabulary.pad, np.int32)
        padded[0, : len(tokens)] = tokens
        scratch = self._programs.num_blocks
        where = np.array([slot, start, scratch if block is None else block], np.int32)
        with self._generator.sharder.mesh_context():
            cache, self._store = self._programs.prefill(
                self._generator.params, self._state.cache, self._store, padded, where
            )
        self._state = dataclasses.replace(self._state, cache=cache)

    def load(self, slot: int, blocks: Sequence[int], start: int) -> None:
        """Copy blocks of the prefix cache to a slot, from position `start` on."""
        capacity = self._state.cache.slots // self._programs.block_size
        padded = np.zeros(capacity, np.int32)
        padded[: len(blocks)] = blocks
        where = np.array([slot, start, len(blocks)], np.int32)
        with self._generator.sharder.mesh_context():
            cache = self._programs.load(self._state.cache, self._store, padded, where)
        self._state = dataclasses.replace(self._state, cache=cache)

    def join(
        self, slot: int, prompt: Sequence[int], grammar: GrammarState, params: SamplingParams, max_new_tokens: int
    ) -> None:
        """Let a slot, whose prompt is prefilled, begin to decode with the next chunk.

        Args:
            slot: the slot.
            prompt: its prompt.
            grammar: state of the grammar after the request's prompt, which is not a guided request's negative one.
            params: sampling parameters.
            max_new_tokens: token budget.
        """
        inputs = self._inputs
        inputs.joins[slot] = True
        inputs.token[slot] = prompt[-1]
        inputs.prompt_lengths[slot] = len(prompt)
        # Stop strings are found on the host (`StopStringMatcher`): tables of new sizes would need new programs.
        one = BatchedSamplingParams.stack(
            [dataclasses.replace(params, stop=())], [max_new_tokens], self._generator.batcher.stop_strings
        )
        targets = jax.tree.leaves((inputs.grammar, inputs.sampling))
        for array, value in zip(targets, jax.tree.leaves((grammar, one)), strict=True):
            array[slot] = value[0]

    def activate(self, slot: int, active: bool) -> None:
        """Say whether a slot takes part in the next chunks."""
        self._inputs.active[slot] = active

    def decode(self, longest: int, num_slots: int, num_steps: int) -> ChunkOutputs:
        """Start a decode chunk and return its outputs, which are still being computed.

        Args:
            longest: how many positions the longest sequence may have after the chunk.
            num_slots: all active slots are among the first `num_slots`.
            num_steps: decode steps, at most `max_chunk`.
        """
        length = next(length for length in self._decode_lengths if length >= longest)
        slots = next(slots for slots in self._decode_slots if slots >= num_slots)
        steps: Any = np.array(num_steps, np.int32)
        inputs = dataclasses.replace(jax.tree.map(np.copy, self._inputs), num_steps=steps)
        self._inputs.joins[:] = False
        with self._generator.sharder.mesh_context():
            self._state, outputs = self._programs.decode(self._generator.params, self._state, inputs, length, slots)
        for leaf in jax.tree.leaves(outputs):
            leaf.copy_to_host_async()
        return outputs

    def _empty_inputs(self, num_slots: int) -> SlotInputs:
        def falses() -> Any:
            return np.zeros(num_slots, bool)

        def zeros() -> Any:
            return np.zeros(num_slots, np.int32)

        compiler = self._generator.batcher.stop_strings
        no_steps: Any = np.array(0, np.int32)
        return SlotInputs(
            num_steps=no_steps,
            active=falses(),
            joins=falses(),
            token=zeros(),
            prompt_lengths=zeros() + 1,
            grammar=GrammarState(falses(), zeros(), zeros()),
            sampling=BatchedSamplingParams.stack([SamplingParams()] * num_slots, [0] * num_slots, compiler),
        )


def copies_cache(generator: Generator) -> bool:
    """Return whether decode chunks work on a copy of the keys and values that they attend to."""
    return generator.sharder.mesh is None and jax.default_backend() == "cpu"


def _with_quarter(size: int) -> tuple[int, ...]:
    """Return a quarter of a size, if that is a number of pairs, and the size: every further one is a program more."""
    return (size // 4, size) if size >= 8 and size % 8 == 0 else (size,)


def _decode_slots(slots: int) -> tuple[int, ...]:
    """Return how many slots a decode chunk may take on a CPU: one, for a single user, a quarter, or all."""
    return tuple(sorted({1, *_with_quarter(slots)}))


def _first_slots(tree: Any, count: int) -> Any:
    """Return the first slots of all arrays but the KV cache."""
    return jax.tree.map(
        lambda leaf: leaf if isinstance(leaf, KVCache) or leaf.ndim == 0 else leaf[:count],
        tree,
        is_leaf=lambda leaf: isinstance(leaf, KVCache),
    )


def _replace_first(pool: DecodeState, first: DecodeState) -> DecodeState:
    """Return the state of all slots with that of the first ones, whose KV cache is the whole one."""

    def replace(old: Any, new: Any) -> Any:
        if isinstance(new, KVCache) or new.ndim == 0:
            return new
        return jax.lax.dynamic_update_slice(old, new, (0,) * new.ndim)

    return jax.tree.map(replace, pool, first, is_leaf=lambda leaf: isinstance(leaf, KVCache))


def _split_layers(cache: KVCache, length: int, slots: int) -> KVCacheLayers:
    """Copy the first positions of the first slots to an array per layer."""

    def split(stack: Array) -> tuple[Array, ...]:
        return tuple(stack[layer, :slots, :, :length] for layer in range(len(stack)))

    return KVCacheLayers(split(cache.k), split(cache.v))


def _write_back(cache: KVCache, layers: KVCacheLayers, begun: DecodeState, num_steps: int) -> KVCache:
    """Write the positions that a chunk of decode steps may have added, given the state at its beginning."""
    first = begun.prompt_lengths + begun.outputs.lengths - 1
    positions = first[:, None] + jnp.arange(num_steps)[None]
    is_new = ~begun.outputs.done[:, None] & (positions < layers.slots)
    positions = jnp.where(is_new, positions, cache.slots)  # which drops them
    num_others = cache.k.shape[1] - len(positions)
    index = jnp.where(is_new, positions, 0)[:, None, :, None]
    positions = jnp.pad(positions, ((0, num_others), (0, 0)), constant_values=cache.slots)

    def select(array: Array) -> Array:
        new = jnp.take_along_axis(array, index, axis=2).swapaxes(1, 2)
        return jnp.pad(new, ((0, num_others), *[(0, 0)] * 3))

    for number, (k, v) in enumerate(zip(layers.k, layers.v, strict=True)):
        layer: Any = np.array(number, np.int32)
        cache = cache.write(layer, select(k), select(v), positions)
    return cache


def _constrain_blocks(store: KVCache) -> KVCache:
    """Shard the block store over heads only: any block may be copied to any slot."""
    axes = (CACHE_AXES[0], None, *CACHE_AXES[2:])
    return KVCache(with_logical_constraint(store.k, axes), with_logical_constraint(store.v, axes))

"""Sizes and limits of the engine."""

import dataclasses

from seed_jax.errors import UserError
from seed_jax.inference.memory_plan import SlotPoolSize


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Sizes and limits of an `Engine`.

    Attributes:
        num_slots: requests that are decoded together; one with classifier-free guidance takes two slots.
        max_model_len: context length, prompt and answer together; None: the model's.
        decode_chunk: decode steps between two occasions to join, leave or cancel.
        max_decode_chunk: with many streams up to so many steps instead, one for every two streams, as long as a chunk
            takes at most `max_chunk_s`: the host's work for a chunk grows with its streams.
        max_chunk_s: see `max_decode_chunk`.
        prefill_chunk: prompt tokens that are prefilled at a time; also the block size of the prefix cache.
        decode_lengths: positions of the KV cache that a decode step attends to; each is compiled at start, and a chunk
            uses the smallest that holds its requests. Empty: powers of two from 128.
        prefill_chunks_per_step: prefill chunks between two decode chunks, an upper bound of a stream's pause.
        prefix_cache_blocks: blocks of `prefill_chunk` tokens whose keys and values are kept for later prompts that
            begin alike; None: half as many as all slots hold; 0: no prefix cache.
        max_queued_requests: requests that wait for a slot; more raise `QueueFullError`.
        max_buffered_events: events that wait for a reader; a request whose reader is slower is cancelled.
        max_beams: largest beam search, which runs beside the slots, one at a time; 1 refuses beams.
    """

    num_slots: int = 8
    max_model_len: int | None = None
    decode_chunk: int = 4
    max_decode_chunk: int = 16
    max_chunk_s: float = 0.05
    prefill_chunk: int = 64
    decode_lengths: tuple[int, ...] = ()
    prefill_chunks_per_step: int = 4
    prefix_cache_blocks: int | None = None
    max_queued_requests: int = 256
    max_buffered_events: int = 256
    max_beams: int = 4

    def __post_init__(self):
        smallest = {
            "max_model_len": 2,
            "max_chunk_s": 0,
            "prefix_cache_blocks": 0,
            "max_queued_requests": 0,
            "max_buffered_events": 2,
        }
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), smallest.get(field.name, 1)
            for number in value if isinstance(value, tuple) else (value,):
                if number is not None and number < least:
                    raise UserError(f"{field.name} is {value}, expected at least {least}.")

    def pool_size(self, context_length: int) -> SlotPoolSize:
        """Return the size of the slots for a context: whole prefill chunks each."""
        blocks_per_slot = -(-context_length // self.prefill_chunk)
        num_blocks = self.prefix_cache_blocks
        if num_blocks is None:
            num_blocks = self.num_slots * blocks_per_slot // 2
        length = blocks_per_slot * self.prefill_chunk
        return SlotPoolSize(self.num_slots, length, self.prefill_chunk, num_blocks, self.max_beams)

    def lengths_up_to(self, slot_length: int) -> tuple[int, ...]:
        """Return the lengths to compile decoding for, in ascending order; the last is that of a slot."""
        powers = (1 << exponent for exponent in range(7, 31))
        shorter = [length for length in self.decode_lengths or powers if length < slot_length]
        return (*sorted(shorter), slot_length)

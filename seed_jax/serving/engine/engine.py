"""The engine: one thread that admits, prefills, decodes and answers requests.

Every step prefills a few chunks, starts a decode chunk, and reads the chunk before it while the device computes.
"""

import collections
import dataclasses
import itertools
import logging
import math
import threading
import time

import jax

from seed_jax.errors import UserError
from seed_jax.inference.generation.batching import Request
from seed_jax.inference.generation.generator import Generator
from seed_jax.inference.memory_plan import MemoryPlan, SlotPoolSize, device_memory, plan_slots
from seed_jax.serving.engine.beam_worker import BeamWorker
from seed_jax.serving.engine.config import EngineConfig
from seed_jax.serving.engine.prefix_cache import PrefixCache
from seed_jax.serving.engine.request import EngineClosedError, EngineDeadError, EngineRequest, QueueFullError
from seed_jax.serving.engine.running_request import RunningRequest
from seed_jax.serving.engine.scheduler import Phase, Row, Scheduler
from seed_jax.serving.engine.slot_pool import ChunkOutputs, SlotPool, copies_cache
from seed_jax.serving.engine.stream import RequestStream

MIN_RETRY_AFTER_S = 1.0
STOP_TIMEOUT_S = 60.0  # for a chunk, or a compilation, that is running


@dataclasses.dataclass(frozen=True)
class EngineStats:
    """The state of an engine; token counts are sums since its start.

    Attributes:
        running: requests that are prefilled or decoded, beam searches included.
        waiting: requests that wait for a slot.
        num_slots: slots.
        slots_in_use: slots that requests occupy.
        kv_cache_usage: share of the pool's positions that requests use, 0 to 1.
        prefix_cache_queries: prompt tokens that were looked up in the prefix cache.
        prefix_cache_hits: prompt tokens that came from it.
        prompt_tokens: tokens of the prompts that were admitted.
        generation_tokens: tokens that were generated.
        finished: finished requests by finish_reason.
        num_programs: compiled programs of the slots; constant after `Engine.start`.
        healthy: False after a failure.
        accepting: whether `submit` takes requests.
    """

    running: int
    waiting: int
    num_slots: int
    slots_in_use: int
    kv_cache_usage: float
    prefix_cache_queries: int
    prefix_cache_hits: int
    prompt_tokens: int
    generation_tokens: int
    finished: dict[str, int]
    num_programs: int
    healthy: bool
    accepting: bool


class Engine:
    """Answers requests from any thread with continuous batching.

    A request's ids are those of `Generator.generate` with the same parameters, whatever its company (in float32; scores
    that are equal up to rounding may fall either way).

    Args:
        generator: the language model.
        config: sizes and limits.
        memory_limit: memory of each device in bytes; by default what the device says.

    Raises:
        UserError: the sizes contradict the model or its mesh, or do not fit into the memory.
    """

    def __init__(self, generator: Generator, config: EngineConfig | None = None, *, memory_limit: int | None = None):
        self.generator = generator
        self.config = config = config or EngineConfig()
        self.max_model_len = config.max_model_len or generator.config.max_length
        if self.max_model_len > generator.config.max_length:
            raise UserError(
                f"max_model_len is {self.max_model_len}, but the model's context is {generator.config.max_length} "
                "tokens: give at most that."
            )
        shards = generator.sharder.num_shards
        if config.num_slots % shards:
            raise UserError(
                f"num_slots is {config.num_slots}, expected a multiple of the mesh's {shards} batch shards."
            )
        pool = config.pool_size(self.max_model_len)
        self.slot_length = pool.length
        self.memory_plan = _plan_memory(generator, pool)
        self.memory_plan.check(device_memory() if memory_limit is None else memory_limit)
        self._batcher = dataclasses.replace(generator.batcher, max_length=self.max_model_len)
        self._scheduler: Scheduler[RunningRequest] = Scheduler(config.num_slots)
        self._prefix_cache = PrefixCache(pool.prefix_cache_blocks, config.prefill_chunk)
        decode_lengths = config.lengths_up_to(self.slot_length)
        max_chunk = max(config.decode_chunk, min(config.max_decode_chunk, config.num_slots // 2))
        self._pool = SlotPool(generator, pool, max_chunk, decode_lengths)
        self._beams = BeamWorker(generator, self._batcher, self._finish_beams)
        self._in_flight: collections.deque[_Chunk] = collections.deque()
        self._step_s = self.config.max_chunk_s  # seconds of a decode step, a moving average
        self._wake = threading.Condition(threading.RLock())  # guards the scheduler and the attributes below
        self._requests: dict[str, RunningRequest] = {}
        self._arrived: list[RunningRequest] = []
        self._has_cancelled = False
        self._accepting = False
        self._stopping = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._counts: collections.Counter[str] = collections.Counter()
        self._finish_reasons: collections.Counter[str] = collections.Counter()
        self._mean_total_s = MIN_RETRY_AFTER_S
        self._num_chunks = 0  # decode chunks that were read

    def start(self) -> None:
        """Compile all programs and begin to answer; returns when both is done."""
        if self._thread.is_alive():
            return
        logging.info("compiling the engine's programs for %d slots ...", self.config.num_slots)
        self._pool.compile()
        self._accepting = True
        self._beams.start()
        self._thread.start()

    def shutdown(self, timeout_s: float = 0.0) -> None:
        """Refuse new requests, let the others finish for up to `timeout_s`, cancel the rest, and stop."""
        with self._wake:
            self._accepting = False
            self._wake.wait_for(lambda: not self._requests, max(timeout_s, 0.0))
            for request in self._requests.values():
                request.is_cancelled = True
            self._has_cancelled = True
            self._stopping = True
            self._wake.notify_all()
        self._beams.stop(STOP_TIMEOUT_S)
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S)

    def submit(self, request: EngineRequest) -> RequestStream:
        """Queue a request.

        Raises:
            UserError: the request is invalid.
            QueueFullError: too many requests are waiting.
            EngineClosedError: the engine does not run, or shuts down.
            EngineDeadError: the engine failed.
        """
        running = self._prepare(request)
        with self._wake:
            self._check_open()
            if request.request_id in self._requests:
                raise UserError(f"request_id {request.request_id!r} is running already: choose another one.")
            self._requests[request.request_id] = running
            if running.is_beam_search:
                self._beams.submit(running)
            else:
                self._arrived.append(running)
                self._wake.notify_all()
        return running.stream

    def cancel(self, request_id: str) -> None:
        """Cancel a request, if it has not finished; its slot is free after the present chunk."""
        with self._wake:
            request = self._requests.get(request_id)
            if request is not None:
                request.is_cancelled = True
                self._has_cancelled = True
                self._wake.notify_all()

    def wait_for_chunk(self, timeout_s: float = 1.0) -> None:
        """Wait until a decode chunk that is running now, if any, is done: for other programs on the same device."""
        with self._wake:
            seen = self._num_chunks
            self._wake.wait_for(lambda: self._num_chunks > seen or not self._in_flight or self._stopping, timeout_s)

    def stats(self) -> EngineStats:
        """Return the present state."""
        with self._wake:
            waiting = self._num_waiting()
            slots = self._scheduler.slots
            positions = len(slots) * self.slot_length
            return EngineStats(
                running=len(self._requests) - waiting,
                waiting=waiting,
                num_slots=len(slots),
                slots_in_use=sum(slot is not None for slot in slots),
                kv_cache_usage=min(1.0, sum(request.num_tokens for request in self._scheduler.running) / positions),
                prefix_cache_queries=self._counts["queries"],
                prefix_cache_hits=self._counts["hits"],
                prompt_tokens=self._counts["prompt"],
                generation_tokens=self._counts["generation"],
                finished=dict(self._finish_reasons),
                num_programs=self._pool.num_programs,
                healthy=self._error is None,
                accepting=self._accepting,
            )

    def _prepare(self, request: EngineRequest) -> RunningRequest:
        """Validate a request."""
        params, vocabulary = request.sampling_params, self.generator.vocabulary
        negative = list(request.negative_prompt or [vocabulary.bos])
        budget = self._batcher.token_budget(Request(request.prompt, params, negative if params.guided else None))
        if params.beams > self.config.max_beams:
            raise UserError(
                f"beams is {params.beams}, but this server allows at most {self.config.max_beams}: use fewer beams, or "
                "`seed-jax generate`."
            )
        if params.guided and self.config.num_slots % 2:
            raise UserError(
                f"guidance_scale needs two neighbouring slots, but num_slots is {self.config.num_slots}: use an even "
                "number of slots."
            )
        if params.parallel_decoding:
            raise UserError("parallel_decoding is not supported by the server: remove it, or use `seed-jax generate`.")
        prompts = [request.prompt, negative] if params.guided else [request.prompt]
        # The last token is computed by the first decode step, so that its block is not a prompt's block.
        rows = [Row(list(prompt), self._prefix_cache.hashes(prompt[:-1], request.cache_salt)) for prompt in prompts]
        stream = RequestStream(request.request_id, self.cancel, self.config.max_buffered_events)
        grammar = self.generator.grammar.state_after(request.prompt)
        return RunningRequest(request, stream, budget, rows, vocabulary, grammar)

    def _check_open(self) -> None:
        """Raise an error if the engine takes no request now; the caller holds the lock."""
        if self._error is not None:
            raise EngineDeadError("The engine failed and must be restarted.") from self._error
        if not self._accepting:
            raise EngineClosedError("The engine takes no requests: it has not been started, or shuts down.")
        waiting, free = self._num_waiting(), self._scheduler.slots.count(None)
        if waiting >= self.config.max_queued_requests + free:
            # When the last waiting request gets a slot, from the mean duration of requests.
            seconds = self._mean_total_s * (1 + waiting / self.config.num_slots)
            raise QueueFullError(waiting, max(MIN_RETRY_AFTER_S, seconds))

    def _num_waiting(self) -> int:
        return len(self._arrived) + len(self._scheduler.waiting) + self._beams.num_waiting

    def _run(self) -> None:
        """Be the engine's thread."""
        try:
            while True:
                with self._wake:
                    self._wake.wait_for(
                        lambda: self._arrived or self._has_cancelled or self._stopping or self._has_work()
                    )
                    cancelled = self._take_in()
                for request in cancelled:
                    self._finish(request, "interrupted")
                if self._stopping and not self._has_work():
                    return
                self._step()
        except BaseException as error:
            logging.exception("the engine failed")
            self._fail(error)

    def _take_in(self) -> list[RunningRequest]:
        """Hand new requests to the scheduler and return the cancelled ones; the caller holds the lock."""
        for request in self._arrived:
            self._scheduler.add(request)
        self._arrived.clear()
        if not self._has_cancelled:
            return []
        self._has_cancelled = False
        return [request for request in self._requests.values() if request.is_cancelled and not request.is_beam_search]

    def _has_work(self) -> bool:
        return not self._scheduler.is_idle or bool(self._in_flight)

    def _step(self) -> None:
        with self._wake:
            for request in self._scheduler.admit():
                request.mark_admitted()
                self._counts["prompt"] += len(request.request.prompt)
        self._prefill()
        with self._wake:
            decoding = list(self._scheduler.decoding())
        for _, request in decoding:
            if not request.joined:
                self._join(request)
        if decoding:
            num_steps = self._num_steps(len(decoding))
            for _, request in decoding:
                request.unread_steps += num_steps
            longest = max(request.longest for _, request in decoding)
            num_slots = 1 + max(row.slot for _, request in decoding for row in request.rows)
            outputs = self._pool.decode(longest, num_slots, num_steps)
            self._in_flight.append(_Chunk(outputs, decoding, num_steps, time.monotonic()))
        # One chunk is computed while the one before it is read.
        if self._in_flight and (len(self._in_flight) > 1 or not decoding):
            self._read(self._in_flight.popleft())

    def _num_steps(self, num_streams: int) -> int:
        """Return how many decode steps the next chunk has."""
        config = self.config
        steps = min(num_streams // 2, config.max_decode_chunk, int(config.max_chunk_s / self._step_s))
        return max(steps, config.decode_chunk)

    def _prefill(self) -> None:
        """Prefill prompts in order: a few chunks, or all if there is no stream that they would stall."""
        for count in itertools.count():
            with self._wake:
                following = self._scheduler.next_prefill()
                streams = any(True for _ in self._scheduler.decoding())
            if following is None or (streams and count >= self.config.prefill_chunks_per_step):
                return
            self._prefill_chunk(*following)

    def _prefill_chunk(self, request: RunningRequest, row: Row) -> None:
        """Copy what the prefix cache has of a row, or prefill its next chunk."""
        size, start = self.config.prefill_chunk, row.prefilled
        index = start // size
        blocks = self._prefix_cache.longest(row.hashes[index:])
        if blocks:
            self._pool.load(row.slot, blocks, start)
            row.prefilled += len(blocks) * size
            row.cached += len(blocks) * size
            self._counts["queries"] += len(blocks) * size
            self._counts["hits"] += len(blocks) * size
            return
        tokens = row.tokens[start : min(start + size, len(row.tokens) - 1)]
        block = self._prefix_cache.allocate(row.hashes[: index + 1]) if index < len(row.hashes) else None
        self._pool.prefill(row.slot, tokens, start, block)
        row.prefilled += len(tokens)
        self._counts["queries"] += len(tokens)

    def _join(self, request: RunningRequest) -> None:
        for row in request.rows:
            params = request.request.sampling_params
            self._pool.join(row.slot, row.tokens, request.grammar, params, request.max_new_tokens)
            self._pool.activate(row.slot, True)
        request.joined = True
        request.mark_decoding()

    def _read(self, started: "_Chunk") -> None:
        """Send the tokens of a chunk to the requests that had the slots when it was started."""
        chunk: ChunkOutputs = jax.device_get(started.outputs)
        seconds = (time.monotonic() - started.time) / started.num_steps  # with the chunk before it: an upper bound
        self._step_s += 0.5 * (seconds - self._step_s)
        num_tokens = 0
        for slot, request in started.decoding:
            request.unread_steps -= started.num_steps
            if request.phase is Phase.FINISHED:
                continue
            before, new = len(request.ids), int(chunk.lengths[slot]) - len(request.ids)
            stopped = request.append(chunk.ids[slot, :new].tolist(), chunk.log_probs[slot, :new].tolist())
            num_tokens += len(request.ids) - before
            reason = None
            if request.is_abandoned:
                reason = "interrupted"
            elif stopped:
                reason = "stop"
            elif chunk.done[slot]:
                reason = "eos" if chunk.hit_eos[slot] else "length"
            if reason is not None:
                self._finish(request, reason)
        with self._wake:
            self._counts["generation"] += num_tokens
            self._num_chunks += 1
            self._wake.notify_all()

    def _finish(self, request: RunningRequest, reason: str) -> None:
        """End a request, free its slots, and send its last event."""
        if request.joined:
            for row in request.rows:
                self._pool.activate(row.slot, False)
        with self._wake:
            self._scheduler.finish(request)
            self._forget(request, reason)
        event = request.finish(reason)
        self._mean_total_s += 0.1 * (event.timings.total_s - self._mean_total_s)

    def _finish_beams(self, request: RunningRequest, reason: str) -> None:
        """Forget a request that a beam search answered."""
        with self._wake:
            self._counts["prompt"] += len(request.request.prompt)
            self._counts["generation"] += len(request.ids)
            self._forget(request, reason)

    def _forget(self, request: RunningRequest, reason: str) -> None:
        self._requests.pop(request.request_id, None)
        self._finish_reasons[reason] += 1
        self._wake.notify_all()

    def _fail(self, error: BaseException) -> None:
        """Tell every reader that the engine failed."""
        with self._wake:
            self._error = error
            self._accepting = False
            self._stopping = True
            failure = EngineDeadError(f"The engine failed: {type(error).__name__}.")
            failure.__cause__ = error
            for request in self._requests.values():
                request.is_cancelled = True
                request.stream.fail(failure)
            self._requests.clear()
            self._in_flight.clear()
            self._wake.notify_all()


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """A decode chunk that was started.

    Attributes:
        outputs: on the device.
        decoding: slot and request of each first row.
        num_steps: decode steps.
        time: of its start.
    """

    outputs: ChunkOutputs
    decoding: list[tuple[int, RunningRequest]]
    num_steps: int
    time: float


def _plan_memory(generator: Generator, pool: SlotPoolSize) -> MemoryPlan:
    """Plan the memory of one device with the generator's parameters as they are."""

    def device_bytes(leaf: jax.Array) -> int:
        return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    mesh = generator.sharder.mesh
    return plan_slots(
        generator.config,
        generator.precision,
        pool,
        sum(map(device_bytes, jax.tree.leaves(generator.params))),
        batch_shards=generator.sharder.num_shards,
        tensor_shards=1 if mesh is None else mesh.shape["tensor"],
        copies_cache=copies_cache(generator),
    )

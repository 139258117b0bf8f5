"""Beam searches beside the slots: one at a time, each as a batch of one in a thread of its own."""

import collections
import logging
import threading
from collections.abc import Callable

from seed_jax.inference.generation.batching import Request
from seed_jax.inference.generation.generator import Generator
from seed_jax.inference.generation.segments import Generation
from seed_jax.serving.engine.request import EngineDeadError, TokenEvent
from seed_jax.serving.engine.running_request import RunningRequest
from seed_jax.serving.engine.scheduler import Phase

CHUNK_TOKENS = 8  # decode steps between two looks at cancellations


class BeamWorker:
    """Answers beam searches, first come, first served.

    Args:
        generator: the language model.
        on_finish: called with a request and its finish_reason.
    """

    def __init__(self, generator: Generator, on_finish: Callable[[RunningRequest, str], None]):
        self._generator = generator
        self._on_finish = on_finish
        self._condition = threading.Condition()
        self._waiting: collections.deque[RunningRequest] = collections.deque()
        self._cancelled: set[str] = set()
        self.thread: threading.Thread | None = None

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def start(self) -> None:
        """Begin to answer."""
        self.thread = threading.Thread(target=self._run, name="beam search", daemon=True)
        self.thread.start()

    def submit(self, request: RunningRequest) -> None:
        """Queue a request."""
        with self._condition:
            self._waiting.append(request)
            self._condition.notify()

    def cancel(self, request_ids: set[str]) -> None:
        """Cancel requests; those of others are ignored."""
        with self._condition:
            self._cancelled |= request_ids

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting)
                request = self._waiting.popleft()
            request.mark_admitted()
            request.phase = Phase.DECODE
            try:
                generation = self._search(request)
            except Exception as error:
                logging.exception("a beam search failed")
                failure = EngineDeadError(f"The beam search failed: {type(error).__name__}.")
                failure.__cause__ = error
                request.stream.fail(failure)
                self._on_finish(request, "error")
                continue
            request.ids = list(generation.ids)
            if generation.ids:
                request.stream.put(TokenEvent(generation.ids))
            request.phase = Phase.FINISHED
            request.finish_with(generation)
            self._on_finish(request, generation.finish_reason)

    def _search(self, request: RunningRequest) -> Generation:
        params = request.request.sampling_params
        request.mark_decoding()
        wanted = Request(request.request.prompt, params, request.request.negative_prompt)
        outputs = None
        for outputs in self._generator.run(self._generator.batcher.batch([wanted], ["The prompt"]), CHUNK_TOKENS):
            with self._condition:
                if request.request.request_id in self._cancelled:
                    self._cancelled.discard(request.request.request_id)
                    break
        assert outputs is not None  # `run` yields at least once
        return Generation.from_outputs(outputs, 0, params, self._generator.vocabulary)

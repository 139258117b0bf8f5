"""Beam searches beside the slots: one at a time, each as a batch of one, in a separate thread."""

import collections
import logging
import threading
from collections.abc import Callable

from seed_jax.inference.generation.batching import Batcher, Request
from seed_jax.inference.generation.generator import Generator
from seed_jax.inference.generation.segments import Generation
from seed_jax.serving.engine.request import EngineError
from seed_jax.serving.engine.running_request import RunningRequest
from seed_jax.serving.engine.scheduler import Phase

CHUNK_TOKENS = 8  # decode steps between two looks at cancellations


class BeamWorker:
    """Answers beam searches, first come, first served.

    Args:
        generator: the language model.
        batcher: makes the batch of one request.
        on_finish: called with a request and its finish_reason.
    """

    def __init__(self, generator: Generator, batcher: Batcher, on_finish: Callable[[RunningRequest, str], None]):
        self._generator = generator
        self._batcher = batcher
        self._on_finish = on_finish
        self._condition = threading.Condition()
        self._waiting: collections.deque[RunningRequest] = collections.deque()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="beam search", daemon=True)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Stop when nothing is waiting, which the caller sees to by cancelling."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def submit(self, request: RunningRequest) -> None:
        """Queue a request; it is cancelled by its flag."""
        with self._condition:
            self._waiting.append(request)
            self._condition.notify()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or self._stopping)
                if not self._waiting:
                    return
                request = self._waiting.popleft()
            try:
                generation = self._search(request)
            except Exception as error:
                logging.exception("a beam search failed")
                failure = EngineError(f"The beam search failed: {type(error).__name__}.")
                failure.__cause__ = error
                self._on_finish(request, "error")
                request.stream.fail(failure)
                continue
            if generation.ids:
                request.append(generation.ids, None)
            request.phase = Phase.FINISHED
            self._on_finish(request, generation.finish_reason)
            request.finish_with(generation)

    def _search(self, request: RunningRequest) -> Generation:
        if request.is_cancelled:
            return Generation((), (), "interrupted")
        params = request.request.sampling_params
        request.mark_admitted()
        request.phase = Phase.DECODE
        request.mark_decoding()
        wanted = Request(request.request.prompt, params, request.request.negative_prompt)
        run = self._generator.run(self._batcher.batch([wanted], ["The prompt"]), CHUNK_TOKENS)
        outputs = next(run)
        while not request.is_cancelled and (later := next(run, None)) is not None:
            outputs = later
        return Generation.from_outputs(outputs, 0, params, self._generator.vocabulary)

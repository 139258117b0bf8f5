"""A request inside the engine: its tokens, its stop strings, its clock and its stream."""

import time
from collections.abc import Sequence

from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.inference.generation.grammar import GrammarState
from seed_jax.inference.generation.segments import Generation
from seed_jax.inference.generation.stop_strings import StopStringMatcher
from seed_jax.serving.engine.request import EngineRequest, FinishedEvent, Timings, TokenEvent, Usage
from seed_jax.serving.engine.scheduler import Row, ScheduledRequest
from seed_jax.serving.engine.stream import RequestStream


class RunningRequest(ScheduledRequest):
    """A submitted request; only the engine's thread changes it.

    Args:
        request: what was submitted.
        stream: where its events go.
        max_new_tokens: token budget, limited by the context length.
        rows: the prompt, and with guidance the negative prompt.
        vocabulary: of the model.
        grammar: state of the image grammar after the prompt.
    """

    def __init__(
        self,
        request: EngineRequest,
        stream: RequestStream,
        max_new_tokens: int,
        rows: list[Row],
        vocabulary: Vocabulary,
        grammar: GrammarState,
    ):
        super().__init__(rows)
        self.request = request
        self.stream = stream
        self.max_new_tokens = max_new_tokens
        self.joined = False  # whether its slots have been told to decode
        self.unread_steps = 0  # decode steps of the chunks that were started for it and are not read yet
        self.is_cancelled = False
        self.is_abandoned = False  # its reader is too slow
        self.ids: list[int] = []
        self.grammar = grammar
        params, inside_image = request.sampling_params, bool(grammar.inside_image[0])
        self._vocabulary = vocabulary
        self._matcher = StopStringMatcher(vocabulary, params.stop_strings, params.image_constraint, inside_image)
        self._arrival = time.monotonic()
        self._admitted: float | None = None
        self._decoding: float | None = None
        self._first_token: float | None = None

    def mark_admitted(self) -> None:
        self._admitted = time.monotonic()

    def mark_decoding(self) -> None:
        self._decoding = time.monotonic()

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def is_beam_search(self) -> bool:
        return self.request.sampling_params.beams > 1

    @property
    def num_tokens(self) -> int:
        """Return how many positions of the KV cache are in use."""
        return sum(row.prefilled for row in self.rows) + len(self.ids) * len(self.rows)

    @property
    def longest(self) -> int:
        """Return how many positions its longer row may have after the chunks that are not read yet."""
        generated = min(len(self.ids) + self.unread_steps, self.max_new_tokens)
        return max(len(row.tokens) for row in self.rows) + generated

    @property
    def cached_tokens(self) -> int:
        return self.rows[0].cached

    def append(self, ids: Sequence[int], logprobs: Sequence[float] | None) -> bool:
        """Add generated tokens up to a stop string, and send them; return whether a stop string ended the answer.

        A reader that is too slow gets no more tokens, see `is_abandoned`.
        """
        count, stopped = len(ids), False
        for index, token in enumerate(ids):
            if self._matcher.advance(token):
                count, stopped = index + 1, True
                break
        if count:
            if self._first_token is None:
                self._first_token = time.monotonic()
            self.ids += ids[:count]
            self.is_abandoned = not self.stream.put(
                TokenEvent(tuple(ids[:count]), None if logprobs is None else tuple(logprobs[:count]))
            )
        return stopped

    def finish(self, finish_reason: str) -> FinishedEvent:
        """Send and return the last event."""
        params = self.request.sampling_params
        return self.finish_with(Generation.from_ids(self.ids, finish_reason, params, self._vocabulary))

    def finish_with(self, generation: Generation) -> FinishedEvent:
        """Send and return the last event, with a given answer."""
        now = time.monotonic()

        def seconds(start: float | None, end: float | None) -> float | None:
            return None if start is None or end is None else end - start

        event = FinishedEvent(
            generation=generation,
            usage=Usage(len(self.request.prompt), len(generation.ids), self.cached_tokens),
            timings=Timings(
                queue_s=seconds(self._arrival, self._admitted),
                prefill_s=seconds(self._admitted, self._decoding),
                first_token_s=seconds(self._arrival, self._first_token),
                total_s=now - self._arrival,
            ),
        )
        self.stream.finish(event)
        return event

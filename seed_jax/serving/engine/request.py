"""Requests to the engine, the events that answer them, and the errors."""

import dataclasses

from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.generation.segments import Generation


class EngineError(Exception):
    """Base class of the errors that are not the request's fault; bad requests raise `UserError`."""


class QueueFullError(EngineError):
    """Too many requests are waiting.

    Attributes:
        retry_after_s: when a place is likely to be free, in seconds.
    """

    def __init__(self, waiting: int, retry_after_s: float):
        super().__init__(f"{waiting} requests are waiting already: try again in {retry_after_s:.0f} s.")
        self.retry_after_s = retry_after_s


class EngineClosedError(EngineError):
    """The engine has not been started, or shuts down."""


class EngineDeadError(EngineError):
    """The engine failed; it answers nothing any more and must be restarted."""


class SlowReaderError(EngineError):
    """The request was cancelled because too many events waited for its reader."""


@dataclasses.dataclass(frozen=True)
class EngineRequest:
    """A prompt to answer.

    Attributes:
        request_id: unique among the running requests.
        prompt: token ids, BOS included; images as their 34 ids.
        sampling_params: decoding options.
        cache_salt: only requests of equal salt share prefixes, so that timing reveals nothing to other tenants.
        negative_prompt: token ids that guidance moves away from; by default BOS alone.
    """

    request_id: str
    prompt: tuple[int, ...]
    sampling_params: SamplingParams = SamplingParams()
    cache_salt: str = ""
    negative_prompt: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class TokenEvent:
    """New tokens of an answer.

    Attributes:
        token_ids: the tokens; EOS is none of them.
        logprobs: log-probability of each token among those that the grammar allowed, before temperature and filters;
            None for a beam search.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Usage:
    """Token counts of a request.

    Attributes:
        prompt_tokens: tokens of the prompt.
        completion_tokens: tokens of the answer without EOS.
        cached_tokens: tokens of the prompt whose keys and values came from the prefix cache.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclasses.dataclass(frozen=True)
class Timings:
    """Durations in seconds of one monotonic clock; None where a request ended before.

    Attributes:
        queue_s: from arrival to a slot.
        prefill_s: from a slot to the first decode step.
        first_token_s: from arrival to the first token.
        total_s: from arrival to the end.
    """

    queue_s: float | None
    prefill_s: float | None
    first_token_s: float | None
    total_s: float


@dataclasses.dataclass(frozen=True)
class FinishedEvent:
    """The last event of a request.

    Attributes:
        generation: the whole answer; finish_reason "interrupted" means cancelled.
        usage: token counts.
        timings: durations.
    """

    generation: Generation
    usage: Usage
    timings: Timings


Event = TokenEvent | FinishedEvent

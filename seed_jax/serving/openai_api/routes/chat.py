"""`/v1/chat/completions` and `/v1/completions`."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Generic, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from seed_jax.inference.drawing.request import DrawOptions
from seed_jax.inference.generation.sampling_params import MAX_SEED, SamplingParams
from seed_jax.serving.messages import Event, Finished, Prompt, TokenLogprobs
from seed_jax.serving.openai_api.answers import (
    Answer,
    DeltaStream,
    collect,
    finish_reason,
    logprob_entries,
    segment_entries,
    usage,
)
from seed_jax.serving.openai_api.context import (
    ApiContext,
    get_context,
    image_entry,
    image_format,
    image_mode,
    new_id,
)
from seed_jax.serving.openai_api.errors import ApiError
from seed_jax.serving.openai_api.event_stream import DONE, encode_event, gather_or_cancel, until_disconnect
from seed_jax.serving.openai_api.protocol.chat import AnswerFields, ChatCompletionRequest, CompletionRequest
from seed_jax.serving.openai_api.routes.documents import STREAMED

router = APIRouter(tags=["answers"])
COMPLETION_TOKENS = 16  # default of /v1/completions, as OpenAI's


@dataclasses.dataclass(frozen=True)
class _Choice:
    """One answer that a request asks for."""

    prompt: Prompt
    params: SamplingParams


@router.post("/v1/chat/completions", responses=STREAMED)
async def create_chat_completion(body: ChatCompletionRequest, request: Request) -> Response:
    """Answer a conversation of text and images with text and images."""
    run = _ChatRun(get_context(request), body, request)
    if body.stream:
        return run.context.stream(run.stream())
    return JSONResponse(await until_disconnect(request, run.complete(), run.context.config.request_timeout_s))


@router.post("/v1/completions", responses=STREAMED)
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Continue prompts without role markers."""
    run = _CompletionRun(get_context(request), body, request)
    if body.stream:
        return run.context.stream(run.stream())
    return JSONResponse(await until_disconnect(request, run.complete(), run.context.config.request_timeout_s))


Body = TypeVar("Body", bound=AnswerFields)


class _Run(Generic[Body]):
    """The answers to one request, whole or streamed."""

    object = ""
    id_prefix = ""

    def __init__(self, context: ApiContext, body: Body, request: Request):
        context.check_model(body.model)
        self.arrival = time.monotonic()
        self.context = context
        self.body = body
        self.writer = context.image_writer(request)
        self.format = image_format(body)
        self.id = new_id(self.id_prefix)
        self.created = int(time.time())
        self.n = body.n or 1
        if self.n > context.config.max_choices:
            raise ApiError(400, f"n is {self.n}, at most {context.config.max_choices} are possible.", param="n")
        self.params = context.sampling_params(
            body,
            max_new_tokens=self.max_tokens(),
            stop=body.stop,
            mode=image_mode(body.modalities),
            num_images=body.num_images,
        )
        self.draw: DrawOptions | None = context.draw_options(body.draw_options, body.draw)
        self.with_logprobs = bool(body.logprobs)

    def max_tokens(self) -> int | None:
        raise NotImplementedError

    @property
    def num_choices(self) -> int:
        return self.n

    async def prompts(self) -> list[Prompt]:
        raise NotImplementedError

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        raise NotImplementedError

    def chunk_choice(self, index: int, delta: dict[str, Any] | None, logprobs: Any, reason: str | None) -> Any:
        raise NotImplementedError

    async def choices(self) -> list[_Choice]:
        """Return what is to be answered: choice i of a prompt has the seed + i."""
        seeds = [(self.params.seed + number) % (MAX_SEED + 1) for number in range(self.n)]
        params = [dataclasses.replace(self.params, seed=seed) for seed in seeds]
        return [_Choice(prompt, one) for prompt in await self.prompts() for one in params]

    def events(self, choice: _Choice) -> AsyncGenerator[Event, None]:
        return self.context.service.answer(
            choice.prompt, choice.params, self.draw, negative_prompt=self.body.negative_prompt, arrival=self.arrival
        )

    def head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.context.config.model_name,
            "system_fingerprint": None,
        }

    async def complete(self) -> dict[str, Any]:
        """Return the body of the response."""
        with self.context.service.reserve(self.num_choices):
            choices = await self.choices()

            async def answer(choice: _Choice) -> Answer:
                async with contextlib.aclosing(self.events(choice)) as events:
                    return await collect(events, self.writer, self.format, as_file=True)

            answers = await gather_or_cancel([answer(choice) for choice in choices])
        return {
            **self.head(self.object),
            "choices": [self.choice(index, answer) for index, answer in enumerate(answers)],
            "usage": self.usage([answer.finished for answer in answers]),
            "seed": self.params.seed,
        }

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the events of the response."""
        head = self.head(f"{self.object}.chunk" if self.object == "chat.completion" else self.object)
        finished: dict[int, Finished] = {}
        with self.context.service.reserve(self.num_choices):
            choices = await self.choices()
            states = [DeltaStream(self.writer, self.format) for _ in choices]
            logprobs: list[list] = [[] for _ in choices]
            begun = [False for _ in choices]
            async with contextlib.aclosing(merged([self.events(choice) for choice in choices])) as events:
                async for index, event in events:
                    if isinstance(event, TokenLogprobs):
                        if self.with_logprobs:
                            logprobs[index] += zip(event.token_ids, event.logprobs, strict=True)
                        continue
                    for delta in await states[index].deltas(event):
                        if not begun[index]:  # a chunk without content would pretend a first token
                            delta = {"role": "assistant", **delta}
                            begun[index] = True
                        yield self._chunk(head, index, delta, logprobs)
                    if isinstance(event, Finished):
                        finished[index] = event
                        delta = {} if begun[index] else {"role": "assistant", "content": ""}
                        yield self._chunk(head, index, delta, logprobs, finish_reason(event.reason))
        options = self.body.stream_options
        if options is not None and options.include_usage:
            counts = self.usage([finished[index] for index in range(len(finished))])
            yield encode_event({**head, "choices": [], "usage": counts, "seed": self.params.seed})
        yield DONE

    def _chunk(
        self, head: dict[str, Any], index: int, delta: dict[str, Any], logprobs: list[list], reason: str | None = None
    ) -> bytes:
        entries, logprobs[index] = logprobs[index], []
        content = {"content": logprob_entries(entries, self.context.service.vocabulary)} if entries else None
        return encode_event({**head, "choices": [self.chunk_choice(index, delta, content, reason)]})

    def usage(self, finished: Sequence[Finished]) -> dict[str, Any]:
        return usage([event.usage for event in finished])


class _ChatRun(_Run[ChatCompletionRequest]):
    object = "chat.completion"
    id_prefix = "chatcmpl-"

    def max_tokens(self) -> int | None:
        return self.body.max_completion_tokens or self.body.max_tokens

    async def prompts(self) -> list[Prompt]:
        messages = await self.context.messages(self.body.messages)
        drop_oldest = self.body.truncation == "auto"
        return [await self.context.service.prepare(messages, self.params, drop_oldest=drop_oldest)]

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.images:
            message["images"] = [image_entry(number, image) for number, image in enumerate(answer.images)]
        message["segments"] = segment_entries(answer.segments)
        entries = logprob_entries(answer.logprobs, self.context.service.vocabulary) if self.with_logprobs else None
        return {
            "index": index,
            "message": message,
            "logprobs": None if entries is None else {"content": entries},
            "finish_reason": finish_reason(answer.finished.reason),
        }

    def chunk_choice(self, index: int, delta: dict[str, Any] | None, logprobs: Any, reason: str | None) -> Any:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


class _CompletionRun(_Run[CompletionRequest]):
    object = "text_completion"
    id_prefix = "cmpl-"

    def max_tokens(self) -> int | None:
        return self.body.max_tokens or COMPLETION_TOKENS

    @property
    def num_choices(self) -> int:
        return self.n * len(self.body.prompts)

    async def prompts(self) -> list[Prompt]:
        service = self.context.service
        return [await service.prepare_text(prompt) for prompt in self.body.prompts]

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "text": answer.text}
        if answer.images:
            choice["images"] = [image_entry(number, image) for number, image in enumerate(answer.images)]
        choice["segments"] = segment_entries(answer.segments)
        choice["logprobs"] = self._logprobs(answer.logprobs) if self.with_logprobs else None
        choice["finish_reason"] = finish_reason(answer.finished.reason)
        return choice

    def _logprobs(self, logprobs: list[tuple[int, float]]) -> dict[str, Any]:
        entries = logprob_entries(logprobs, self.context.service.vocabulary)
        return {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": None,
            "text_offset": [],
        }

    def chunk_choice(self, index: int, delta: dict[str, Any] | None, logprobs: Any, reason: str | None) -> Any:
        delta = dict(delta or {})
        delta.pop("role", None)
        return {"index": index, "text": delta.pop("content", ""), **delta, "logprobs": None, "finish_reason": reason}

    def usage(self, finished: Sequence[Finished]) -> dict[str, Any]:
        groups = [finished[start : start + self.n] for start in range(0, len(finished), self.n)]
        return _sum([usage([event.usage for event in group]) for group in groups])


def _sum(values: Sequence[Any]) -> Any:
    if isinstance(values[0], dict):
        return {name: _sum([value[name] for value in values]) for name in values[0]}
    return sum(values)


async def merged(generators: Sequence[AsyncGenerator[Event, None]]) -> AsyncGenerator[tuple[int, Event], None]:
    """Yield (index, event) of several generators as events come; all are closed at the end."""
    if len(generators) == 1:
        async with contextlib.aclosing(generators[0]) as events:
            async for event in events:
                yield 0, event
        return
    queue: asyncio.Queue = asyncio.Queue(len(generators))

    async def pump(index: int, generator: AsyncGenerator[Event, None]) -> None:
        try:
            async with contextlib.aclosing(generator) as events:
                async for event in events:
                    await queue.put((index, event))
            await queue.put((index, None))
        except Exception as error:
            await queue.put((index, error))

    tasks = [asyncio.create_task(pump(index, generator)) for index, generator in enumerate(generators)]
    running = len(tasks)
    try:
        while running:
            index, event = await queue.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                running -= 1
            else:
                yield index, event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

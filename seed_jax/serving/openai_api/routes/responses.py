"""`/v1/responses`: text and images as output items in the order in which they were generated."""

import contextlib
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from seed_jax.inference.chat.prompts import ASSISTANT
from seed_jax.serving.messages import (
    SYSTEM,
    AnswerUsage,
    ChatMessage,
    Event,
    Finished,
    ImageCodes,
    ImageDrawn,
    ImageStarted,
    TextDelta,
)
from seed_jax.serving.openai_api.context import ApiContext, get_context, new_id
from seed_jax.serving.openai_api.errors import from_exception
from seed_jax.serving.openai_api.event_stream import encode_event, until_disconnect
from seed_jax.serving.openai_api.image_output import ImageFormat
from seed_jax.serving.openai_api.protocol.common import ImageCodesPart, ImageUrlPart
from seed_jax.serving.openai_api.protocol.responses import InputImageCall, ResponsesRequest, ToolChoice
from seed_jax.serving.openai_api.routes.documents import STREAMED

router = APIRouter(tags=["answers"])


@router.post("/v1/responses", responses=STREAMED)
async def create_response(body: ResponsesRequest, request: Request) -> Response:
    """Answer with output items: messages and images in order."""
    run = _ResponseRun(get_context(request), body, request)
    if body.stream:
        return run.context.stream(run.stream())
    return JSONResponse(await until_disconnect(request, run.complete(), run.context.config.request_timeout_s))


class _ResponseRun:
    """The answer to one request, and its events with rising sequence numbers."""

    def __init__(self, context: ApiContext, body: ResponsesRequest, request: Request):
        context.check_model(body.model)
        self.arrival = time.monotonic()
        self.context = context
        self.body = body
        self.writer = context.image_writer(request)
        tool = next(iter(body.tools or ()), None)
        quality = tool.output_compression if tool else None
        self.format = ImageFormat((tool and tool.output_format) or "png", 90 if quality is None else max(1, quality))
        mode = "image" if isinstance(body.tool_choice, ToolChoice) else "text" if body.tool_choice == "none" else "free"
        self.params = context.sampling_params(
            body, max_new_tokens=body.max_output_tokens, mode=mode, num_images=body.num_images
        )
        self.draw = context.draw_options(body.draw_options, body.draw)
        self.id = new_id("resp_")
        self.created = int(time.time())
        self.output: list[dict[str, Any]] = []
        self.open_text: int | None = None  # output index of the message that is being written
        self.images: list[int] = []  # output index of each image
        self._sequence_number = 0

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield the service's events; the request keeps its place meanwhile."""
        service = self.context.service
        with service.reserve():
            messages = await self.messages()
            drop_oldest = self.body.truncation == "auto"
            prompt = await service.prepare(messages, self.params, drop_oldest=drop_oldest)
            answer = service.answer(
                prompt, self.params, self.draw, negative_prompt=self.body.negative_prompt, arrival=self.arrival
            )
            async with contextlib.aclosing(answer) as events:
                async for event in events:
                    yield event

    async def messages(self) -> list[ChatMessage]:
        """Return the conversation; images of earlier answers are the assistant's messages."""
        system = [ChatMessage(SYSTEM, (self.body.instructions,))] if self.body.instructions else []
        if isinstance(self.body.input, str):
            return [*system, ChatMessage("user", (self.body.input,))]
        roles, groups = [], []
        for item in self.body.input:
            if isinstance(item, InputImageCall):
                roles.append(ASSISTANT)
                if item.codes is not None:
                    groups.append([ImageCodesPart(type="image", codes=item.codes)])
                else:
                    url = f"data:image/png;base64,{item.result or ''}"
                    groups.append([ImageUrlPart(type="input_image", image_url=url)])
            else:
                roles.append(SYSTEM if item.role == "developer" else item.role)
                groups.append([item.content] if isinstance(item.content, str) else item.content)
        contents = await self.context.contents(groups, "input")
        return system + [ChatMessage(role, tuple(parts)) for role, parts in zip(roles, contents, strict=True)]

    async def complete(self) -> dict[str, Any]:
        """Return the body of the response."""
        async with contextlib.aclosing(self.items()) as items:
            async for _ in items:
                pass
        return self.response

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the encoded events."""
        begun = False
        try:
            async with contextlib.aclosing(self.items()) as items:
                async for item in items:
                    if not begun:  # an error before the first token has its own status
                        for kind in ("response.created", "response.in_progress"):
                            yield self._event(kind, response=self._response("in_progress"))
                        begun = True
                    yield self._event(item.pop("type"), **item)
        except Exception as error:
            if not begun:
                raise
            told = from_exception(error).body()["error"]
            failure = {"code": "server_error", "message": told["message"]}
            yield self._event("response.failed", response={**self._response("failed"), "error": failure})
            return
        kind = "response.incomplete" if self.response["status"] == "incomplete" else "response.completed"
        yield self._event(kind, response=self.response)

    async def items(self) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the events about output items, and fill `output` and `response`."""
        async with contextlib.aclosing(self.events()) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    for item in self._text(event.text):
                        yield item
                elif isinstance(event, ImageStarted):
                    for item in (*self._end_text(), *self._begin_image()):
                        yield item
                elif isinstance(event, ImageCodes):
                    index = self.images[event.index]
                    self.output[index]["codes"] = list(event.codes)
                    if self.draw is None:
                        for item in self._end_image(index):
                            yield item
                    else:
                        yield self._about_image("generating", index)
                elif isinstance(event, ImageDrawn):
                    index = self.images[event.index]
                    written = await self.writer.write(event.image, self.format, as_file=False)
                    self.output[index] |= {
                        "result": written.base64, "output_format": written.format, "size": written.size,
                    }  # fmt: skip
                    for item in self._end_image(index):
                        yield item
                elif isinstance(event, Finished):
                    if not self.output:
                        for item in self._begin_text():
                            yield item
                    for item in self._end_text():
                        yield item
                    is_cut = event.reason == "length"
                    self.response = {
                        **self._response("incomplete" if is_cut else "completed"),
                        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
                        "completed_at": int(time.time()),
                        "usage": _usage(event.usage),
                    }

    def _text(self, text: str) -> Iterator[dict[str, Any]]:
        if self.open_text is None:
            yield from self._begin_text()
        index = self.open_text
        assert index is not None
        item = self.output[index]
        item["content"][0]["text"] += text
        yield {
            "type": "response.output_text.delta",
            "item_id": item["id"],
            "output_index": index,
            "content_index": 0,
            "delta": text,
            "logprobs": [],
        }

    def _begin_text(self) -> Iterator[dict[str, Any]]:
        self.open_text = index = len(self.output)
        item = {"type": "message", "id": new_id("msg_"), "role": "assistant", "status": "in_progress", "content": []}
        yield {"type": "response.output_item.added", "output_index": index, "item": dict(item)}
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self.output.append({**item, "content": [part]})
        place = {"item_id": item["id"], "output_index": index, "content_index": 0}
        yield {"type": "response.content_part.added", **place, "part": dict(part)}

    def _end_text(self) -> Iterator[dict[str, Any]]:
        if self.open_text is None:
            return
        index, self.open_text = self.open_text, None
        item = self.output[index]
        item["status"] = "completed"
        part = item["content"][0]
        place = {"item_id": item["id"], "output_index": index, "content_index": 0}
        yield {"type": "response.output_text.done", **place, "text": part["text"], "logprobs": []}
        yield {"type": "response.content_part.done", **place, "part": part}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}

    def _begin_image(self) -> Iterator[dict[str, Any]]:
        index = len(self.output)
        self.images.append(index)
        item = {"type": "image_generation_call", "id": new_id("ig_"), "status": "in_progress", "result": None}
        self.output.append(item)
        yield {"type": "response.output_item.added", "output_index": index, "item": dict(item)}
        yield self._about_image("in_progress", index)

    def _end_image(self, index: int) -> Iterator[dict[str, Any]]:
        self.output[index]["status"] = "completed"
        yield self._about_image("completed", index)
        yield {"type": "response.output_item.done", "output_index": index, "item": self.output[index]}

    def _about_image(self, what: str, index: int) -> dict[str, Any]:
        item_id = self.output[index]["id"]
        return {"type": f"response.image_generation_call.{what}", "item_id": item_id, "output_index": index}

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = {"type": kind, "sequence_number": self._sequence_number, **fields}
        self._sequence_number += 1
        return encode_event(data, kind)

    def _response(self, status: str) -> dict[str, Any]:
        body = self.body
        tools = [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
        choice = body.tool_choice
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": self.context.config.model_name,
            "output": self.output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "seed": self.params.seed,
            "store": False,
            "temperature": self.params.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": choice.model_dump() if isinstance(choice, ToolChoice) else choice or "auto",
            "tools": tools,
            "top_p": self.params.top_p,
            "truncation": body.truncation or "disabled",
            "usage": None,
            "metadata": {},
        }


def _usage(usage: AnswerUsage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": 0,
            "image_tokens": usage.prompt_image_tokens,
            "text_tokens": usage.prompt_tokens - usage.prompt_image_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {
            "reasoning_tokens": 0,
            "image_tokens": usage.completion_image_tokens,
            "text_tokens": usage.completion_tokens - usage.completion_image_tokens,
        },
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }

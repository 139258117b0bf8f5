"""`/v1/images/generations` and `/v1/images/edits`."""

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from seed_jax.inference.chat.prompts import USER
from seed_jax.inference.generation.sampling_params import MAX_SEED
from seed_jax.serving.messages import AnswerUsage, ChatMessage, Finished, ImageDrawn, Prompt
from seed_jax.serving.openai_api.context import ApiContext, get_context, image_format
from seed_jax.serving.openai_api.errors import ApiError, from_validation_errors
from seed_jax.serving.openai_api.event_stream import encode_event, until_disconnect
from seed_jax.serving.openai_api.image_output import OutputImage
from seed_jax.serving.openai_api.protocol.images import ImageGenerationRequest
from seed_jax.serving.openai_api.routes.documents import answered

router = APIRouter(tags=["images"])
_MAX_FORM_FIELDS = 64
_MAX_FIELD_BYTES = 256 * 1024
_EXAMPLE = {
    "created": 1780000000,
    "data": [{"b64_json": "iVBORw0KGgo...", "revised_prompt": None, "seed": 1}],
    "output_format": "png",
    "size": "768x768",
    "usage": {"input_tokens": 12, "output_tokens": 34, "total_tokens": 46},
}
_STRING, _FILE = {"type": "string"}, {"type": "string", "format": "binary"}
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image", "prompt"],
                    "properties": {
                        "image": _FILE,
                        "image[]": {"type": "array", "items": _FILE, "description": "Several images."},
                        "prompt": {"type": "string", "minLength": 1},
                        "model": _STRING,
                        "n": {"type": "integer", "minimum": 1, "maximum": 16},
                        "seed": {"type": "integer"},
                        "size": _STRING,
                        "response_format": {"type": "string", "enum": ["b64_json", "url"]},
                        "output_format": {"type": "string", "enum": ["png", "webp", "jpeg"]},
                    },
                }
            }
        },
    }
}


@router.post("/v1/images/generations", responses=answered(_EXAMPLE, "The images."))
async def create_image(body: ImageGenerationRequest, request: Request) -> Response:
    """Draw images from a prompt."""
    return await _respond(_ImageRun(get_context(request), body, request, "image_generation"), request)


@router.post("/v1/images/edits", responses=answered(_EXAMPLE, "The images."), openapi_extra=_FORM)
async def edit_image(request: Request) -> Response:
    """Draw images from images and an instruction."""
    context = get_context(request)
    try:
        form = await request.form(
            max_files=context.media.rules.max_images, max_fields=_MAX_FORM_FIELDS, max_part_size=_MAX_FIELD_BYTES
        )
    except MultiPartException:
        raise ApiError(400, "The form is malformed or has too many parts.", code="invalid_form") from None
    async with contextlib.aclosing(_Form(form)) as opened:
        body, files = opened.read()
        context.check_images(len(files))
        if not files:
            raise ApiError(422, "image: give at least one file.", param="image", code="invalid_value")
        run = _ImageRun(context, body, request, "image_edit", [await _read(file, context) for file in files])
    return await _respond(run, request)


async def _read(file: UploadFile, context: ApiContext) -> bytes:
    return await file.read(context.media.rules.max_bytes + 1)


class _Form:
    """A multipart form as the fields of a request, and its image files."""

    def __init__(self, form: Any):
        self._form = form

    def read(self) -> tuple[ImageGenerationRequest, list[UploadFile]]:
        values: dict[str, Any] = {}
        files: list[UploadFile] = []
        for name, value in self._form.multi_items():
            if isinstance(value, UploadFile):
                if name not in ("image", "image[]"):
                    message = f"{name[:100]}: this file is not supported."
                    raise ApiError(400, message, param=name[:100], code="unsupported_parameter")
                files.append(value)
            elif name in ("image", "image[]"):
                raise ApiError(422, "image: expected a file.", param="image", code="invalid_value")
            elif name == "draw_options":
                try:
                    values[name] = json.loads(value)
                except (ValueError, RecursionError):
                    raise ApiError(422, "draw_options: expected JSON.", param=name, code="invalid_value") from None
            elif value != "":
                values[name] = value
        try:
            # Forms have strings only.
            return ImageGenerationRequest.model_validate(values, strict=False), files
        except ValidationError as error:
            raise from_validation_errors(error.errors()) from None

    async def aclose(self) -> None:
        await self._form.close()


async def _respond(run: "_ImageRun", request: Request) -> Response:
    if run.body.stream:
        return run.context.stream(run.stream())
    return JSONResponse(await until_disconnect(request, run.complete(), run.context.config.request_timeout_s))


@dataclasses.dataclass(frozen=True)
class _DrawnImage:
    image: OutputImage
    seed: int
    usage: AnswerUsage


class _ImageRun:
    """The images that one request asks for; image i has the seed + i."""

    def __init__(
        self,
        context: ApiContext,
        body: ImageGenerationRequest,
        request: Request,
        event: str,
        files: Sequence[bytes] = (),
    ):
        context.check_model(body.model)
        if not context.service.can_draw:
            raise ApiError(400, "This server has no image decoder: it draws no images.", code="no_image_decoder")
        size = context.service.image_size
        if body.size not in (None, "auto", f"{size}x{size}"):
            message = f"size is {body.size!r}: this server draws {size}x{size}; send that, or auto."
            raise ApiError(400, message, param="size", code="invalid_value")
        self.arrival = time.monotonic()
        self.context = context
        self.body = body
        self.event = event
        self.files = files
        self.writer = context.image_writer(request)
        self.format = image_format(body)
        self.n = body.n or 1
        # An image has a fixed number of tokens; nothing follows it.
        self.params = context.sampling_params(
            body, max_new_tokens=context.service.tokens_per_image, mode="image", num_images=1
        )
        self.draw = context.draw_options(body.draw_options)
        self.created = int(time.time())

    async def prompt(self) -> Prompt:
        images: list[Image.Image] = []
        for number, data in enumerate(self.files):
            images.append(await asyncio.to_thread(self.context.media.decode, data, f"image.{number}"))
        message = ChatMessage(USER, (*images, self.body.prompt))
        return await self.context.service.prepare([message], self.params)

    async def drawn(self, prompt: Prompt, number: int) -> _DrawnImage:
        seed = (self.params.seed + number) % (MAX_SEED + 1)
        params = dataclasses.replace(self.params, seed=seed)
        image = finished = None
        answer = self.context.service.answer(
            prompt, params, self.draw, negative_prompt=self.body.negative_prompt, arrival=self.arrival
        )
        async with contextlib.aclosing(answer) as events:
            async for event in events:
                if isinstance(event, ImageDrawn):
                    image = event.image
                elif isinstance(event, Finished):
                    finished = event
        assert image is not None
        assert finished is not None
        as_file = self.body.response_format == "url"
        return _DrawnImage(await self.writer.write(image, self.format, as_file=as_file), seed, finished.usage)

    async def images(self) -> AsyncGenerator[_DrawnImage, None]:
        """Yield the images in order, while all are drawn."""
        with self.context.service.reserve(self.n):
            prompt = await self.prompt()
            tasks = [asyncio.create_task(self.drawn(prompt, number)) for number in range(self.n)]
            try:
                for task in tasks:
                    yield await task
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def complete(self) -> dict[str, Any]:
        """Return the body of the response."""
        async with contextlib.aclosing(self.images()) as images:
            drawn = [one async for one in images]
        return {
            "created": self.created,
            "data": [{**self._content(one), "revised_prompt": None, "seed": one.seed} for one in drawn],
            "background": "opaque",
            "output_format": drawn[0].image.format,
            "quality": "auto",
            "size": drawn[0].image.size,
            "usage": _usage([one.usage for one in drawn]),
        }

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield one event per image."""
        kind = f"{self.event}.completed"
        async with contextlib.aclosing(self.images()) as images:
            async for one in images:
                content = {
                    "type": kind,
                    "b64_json": one.image.base64,
                    "background": "opaque",
                    "created_at": self.created,
                    "output_format": one.image.format,
                    "quality": "auto",
                    "seed": one.seed,
                    "size": one.image.size,
                    "usage": _usage([one.usage]),
                }
                yield encode_event(content, kind)

    def _content(self, one: _DrawnImage) -> dict[str, Any]:
        return {"url": one.image.url} if self.body.response_format == "url" else {"b64_json": one.image.base64}


def _usage(parts: Sequence[AnswerUsage]) -> dict[str, Any]:
    prompt, output = parts[0], sum(part.completion_tokens for part in parts)
    return {
        "input_tokens": prompt.prompt_tokens,
        "input_tokens_details": {
            "image_tokens": prompt.prompt_image_tokens,
            "text_tokens": prompt.prompt_tokens - prompt.prompt_image_tokens,
        },
        "output_tokens": output,
        "total_tokens": prompt.prompt_tokens + output,
    }

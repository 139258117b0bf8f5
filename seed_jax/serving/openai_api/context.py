"""What the routes share: the service, the rules of images, and how requests become parameters and messages."""

import asyncio
import dataclasses
import secrets
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any

from fastapi import Request
from PIL import Image

from seed_jax.inference.drawing.request import DrawOptions
from seed_jax.inference.generation.sampling_params import MAX_SEED, SamplingParams
from seed_jax.inference.generation.segments import ImageSegment
from seed_jax.serving.messages import SYSTEM, ChatMessage, Content
from seed_jax.serving.openai_api.errors import ApiError
from seed_jax.serving.openai_api.event_stream import EventStream, gather_or_cancel
from seed_jax.serving.openai_api.image_output import ImageFormat, ImageWriter, MediaStore, OutputImage
from seed_jax.serving.openai_api.media import MediaLoader
from seed_jax.serving.openai_api.protocol.chat import ChatMessage as ChatMessageFields
from seed_jax.serving.openai_api.protocol.common import (
    DrawFields,
    ImageCodesPart,
    ImageFormatFields,
    ImageUrlPart,
    SamplingFields,
    TextPart,
)
from seed_jax.serving.service import SeedService

_DECODED_AT_ONCE = 4  # images of one request that are decoded at the same time
Part = str | TextPart | ImageUrlPart | ImageCodesPart


@dataclasses.dataclass(frozen=True)
class ApiConfig:
    """Settings of the API.

    Attributes:
        model_name: name under which the model is served.
        defaults: decoding options that requests leave out.
        max_choices: choices of one request.
        request_timeout_s: seconds that an answer may take, queue included.
        send_timeout_s: seconds that a client may take to accept a piece of a stream.
        public_url: address of the server in the URLs of files; by default the one that the request used.
        created: time at which the model was loaded, in seconds of the epoch.
    """

    model_name: str
    defaults: SamplingParams = SamplingParams(temperature=1.0, top_p=0.5)
    max_choices: int = 16
    request_timeout_s: float = 600.0
    send_timeout_s: float = 60.0
    public_url: str | None = None
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))


@dataclasses.dataclass(frozen=True)
class ApiContext:
    """The service behind the routes.

    Attributes:
        service: answers conversations.
        config: settings.
        media: reads the images of requests.
        store: files of drawn images; None: images are data URIs.
        clip: embeds texts, a `seed_jax.evaluation.clip.ClipModel`.
    """

    service: SeedService
    config: ApiConfig
    media: MediaLoader
    store: MediaStore | None = None
    clip: Any = None

    def check_model(self, name: str | None) -> None:
        """Raise ApiError (404) unless `name` is the served model's or left out."""
        if name not in (None, "", self.config.model_name):
            raise ApiError(
                404,
                f"The model {name[:100]!r} does not exist: this server has {self.config.model_name!r}.",
                param="model",
                code="model_not_found",
            )

    def sampling_params(self, fields: SamplingFields, **changes: Any) -> SamplingParams:
        """Return the decoding options of a request; `changes` are fields that only some endpoints have.

        Raises:
            UserError: a value is out of range.
        """
        given = {
            name: getattr(fields, name)
            for name in ("temperature", "top_p", "top_k", "min_p", "guidance_scale", "beams")
            if getattr(fields, name) is not None
        }
        if given.get("top_k") == -1:
            given["top_k"] = 0
        given["seed"] = reduce_seed(fields.seed)
        given |= {name: value for name, value in changes.items() if value is not None}
        given = {name: float(value) if name in _FLOATS else value for name, value in given.items()}
        return dataclasses.replace(self.config.defaults, **given)

    def draw_options(self, fields: DrawFields | None, draw: bool | None = None) -> DrawOptions | None:
        """Return the options of the image decoder; None if nothing is to be drawn."""
        if draw is False or not self.service.can_draw:
            return None
        options = DrawOptions() if fields is None else DrawOptions(**fields.model_dump())
        self.service.check_draw_options(options)
        return options

    async def messages(self, messages: Sequence[ChatMessageFields]) -> list[ChatMessage]:
        """Read the messages of a request, with their images decoded."""
        contents: list[Sequence[Part]] = []
        for message in messages:
            parts: Sequence[Part] = message.segments or ()
            if not parts:
                content = message.content or ()
                parts = (*([content] if isinstance(content, str) else content), *(message.images or ()))
            contents.append(parts)
        loaded = await self.contents(contents, "messages")
        roles = {"developer": SYSTEM}
        return [
            ChatMessage(roles.get(message.role, message.role), tuple(content))
            for message, content in zip(messages, loaded, strict=True)
        ]

    async def contents(self, groups: Sequence[Sequence[Part]], where: str) -> list[list[Content]]:
        """Read groups of content parts; the images of all groups are decoded in worker threads."""
        urls: list[tuple[str, str]] = []
        for index, parts in enumerate(groups):
            for number, part in enumerate(parts):
                if isinstance(part, ImageUrlPart):
                    url = part.image_url if isinstance(part.image_url, str) else part.image_url.url
                    urls.append((url, f"{where}.{index}.content.{number}"))
        images = iter(await self.load_images(urls))
        vocabulary = self.service.vocabulary

        def read(part: Part) -> Content:
            if isinstance(part, str):
                return part
            if isinstance(part, TextPart):
                return part.text
            if isinstance(part, ImageUrlPart):
                return next(images)
            vocabulary.image_ids(part.codes)  # raises UserError for codes of another tokenizer
            return ImageSegment(tuple(part.codes))

        return [[read(part) for part in parts] for parts in groups]

    async def load_images(self, urls: Sequence[tuple[str, str]]) -> list[Image.Image]:
        """Read and decode images, given as (URL, place in the request)."""
        self.check_images(len(urls))
        limit = asyncio.Semaphore(_DECODED_AT_ONCE)

        async def load(url: str, where: str) -> Image.Image:
            async with limit:
                return await asyncio.to_thread(self.media.image, url, where)

        return await gather_or_cancel([load(url, where) for url, where in urls])

    def check_images(self, count: int) -> None:
        """Raise ApiError if a request has more images than are permitted, or if they cannot be read at all."""
        limit = self.media.rules.max_images
        if count > limit:
            raise ApiError(400, f"The request has {count} images, at most {limit} are read.", code="too_many_images")
        if count and not self.service.can_encode:
            raise ApiError(400, "This server has no image tokenizer: it reads no images.", code="no_image_tokenizer")

    def image_writer(self, request: Request) -> ImageWriter:
        """Return what encodes the images of an answer."""
        return ImageWriter(self.store, self.config.public_url or str(request.base_url))

    def stream(self, events: AsyncGenerator[bytes, None]) -> EventStream:
        """Return a response that streams encoded events."""
        return EventStream(events, timeout_s=self.config.request_timeout_s, send_timeout_s=self.config.send_timeout_s)


_FLOATS = ("temperature", "top_p", "min_p", "guidance_scale")


def get_context(request: Request) -> ApiContext:
    """Return the context of the app that a request came to."""
    return request.app.state.context


def reduce_seed(seed: int | None) -> int:
    """Return a seed modulo 2**32, or a random one."""
    return secrets.randbelow(MAX_SEED + 1) if seed is None else seed % (MAX_SEED + 1)


def image_mode(modalities: Iterable[str] | None) -> str:
    """Return the image mode (`SamplingParams.mode`) that modalities stand for."""
    names = set(modalities or ("text", "image"))
    if names == {"text"}:
        return "text"
    return "image" if names == {"image"} else "free"


def image_format(fields: ImageFormatFields) -> ImageFormat:
    quality = fields.output_compression
    return ImageFormat(fields.output_format or "png", 90 if quality is None else max(quality, 1))


def image_entry(index: int, image: OutputImage) -> dict[str, Any]:
    """Return an image of a message, in the form of OpenRouter, LiteLLM and Open WebUI."""
    return {"type": "image_url", "index": index, "image_url": {"url": image.url}}


def new_id(prefix: str) -> str:
    return f"{prefix}{secrets.token_hex(12)}"

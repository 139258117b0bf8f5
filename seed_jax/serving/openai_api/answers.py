"""Answers as chat completions: whole, or as the deltas of a stream.

The images of an answer are numbered from 0 and sent once, whole and in order, because clients (the `openai` package's
`accumulate_delta` for one) join the strings of entries with equal `index` and insert entries by arrival. An image that
is drawn before its predecessor is held back. The same holds for `segments`.
"""

import dataclasses
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

from seed_jax.inference.generation.segments import ImageSegment, Segment
from seed_jax.serving.messages import (
    AnswerUsage,
    Event,
    Finished,
    ImageCodes,
    ImageDrawn,
    TextDelta,
    TokenLogprobs,
)
from seed_jax.serving.openai_api.context import image_entry
from seed_jax.serving.openai_api.image_output import ImageFormat, ImageWriter, OutputImage

_FINISH_REASONS = {"eos": "stop", "stop": "stop", "length": "length"}
VERY_UNLIKELY = -9999.0  # in place of minus infinity, which JSON lacks


def finish_reason(reason: str) -> str:
    """Return OpenAI's name of a finish reason."""
    return _FINISH_REASONS[reason]


@dataclasses.dataclass
class Answer:
    """An answer that is complete.

    Attributes:
        text: all text in it.
        images: its drawn images in order.
        segments: text and images as codes, in order.
        logprobs: log-probabilities of its tokens, if they were asked for.
        finished: the last event.
    """

    text: str
    images: list[OutputImage]
    segments: tuple[Segment, ...]
    logprobs: list[tuple[int, float]]
    finished: Finished


async def collect(
    events: AsyncIterator[Event], writer: ImageWriter, image_format: ImageFormat, *, as_file: bool
) -> Answer:
    """Wait for the end of an answer."""
    text: list[str] = []
    images: dict[int, OutputImage] = {}
    logprobs: list[tuple[int, float]] = []
    async for event in events:
        if isinstance(event, TextDelta):
            text.append(event.text)
        elif isinstance(event, ImageDrawn):
            images[event.index] = await writer.write(event.image, image_format, as_file=as_file)
        elif isinstance(event, TokenLogprobs):
            logprobs += zip(event.token_ids, event.logprobs, strict=True)
        elif isinstance(event, Finished):
            ordered = [images[index] for index in sorted(images)]
            return Answer("".join(text), ordered, event.generation.segments, logprobs, event)
    raise RuntimeError("an answer ended without its last event")


def segment_entries(segments: Iterable[Segment]) -> list[dict[str, Any]]:
    """Return ordered segments as JSON; image k of the answer is image k of `images`."""
    entries: list[dict[str, Any]] = []
    num_images = 0
    for index, segment in enumerate(segments):
        entry = {"index": index, **segment.to_dict()}
        if isinstance(segment, ImageSegment):
            entry["image_index"] = num_images
            num_images += 1
        entries.append(entry)
    return entries


class DeltaStream:
    """Turns the events of one answer into the deltas of `chat.completion.chunk`s.

    Args:
        writer: encodes images.
        image_format: their format.
    """

    def __init__(self, writer: ImageWriter, image_format: ImageFormat):
        self._writer = writer
        self._format = image_format
        self._text = ""  # of the present segment
        self._num_segments = 0
        self._num_images = 0  # sent
        self._num_codes = 0  # images whose codes are complete
        self._early: dict[int, OutputImage] = {}

    async def deltas(self, event: Event) -> list[dict[str, Any]]:
        """Return what an event adds to a message; the event `Finished` is not one of a message."""
        if isinstance(event, TextDelta):
            self._text += event.text
            return [{"content": event.text}]
        if isinstance(event, ImageCodes):
            entry = {"type": "image", "codes": list(event.codes), "image_index": self._num_codes}
            self._num_codes += 1
            return [{"segments": [*self._end_text(), self._number(entry)]}]
        if isinstance(event, ImageDrawn):
            self._early[event.index] = await self._writer.write(event.image, self._format, as_file=True)
            return [{"images": [image_entry(index, image)]} for index, image in self._in_order()]
        if isinstance(event, Finished) and self._num_codes:
            rest = list(self._end_text())
            return [{"segments": rest}] if rest else []
        return []

    def _end_text(self) -> Iterator[dict[str, Any]]:
        if self._text:
            yield self._number({"type": "text", "text": self._text})
            self._text = ""

    def _number(self, entry: dict[str, Any]) -> dict[str, Any]:
        self._num_segments += 1
        return {"index": self._num_segments - 1, **entry}

    def _in_order(self) -> Iterator[tuple[int, OutputImage]]:
        while self._num_images in self._early:
            yield self._num_images, self._early.pop(self._num_images)
            self._num_images += 1


def usage(parts: Iterable[AnswerUsage]) -> dict[str, Any]:
    """Return the usage of the choices of one request: the prompt counts once."""
    parts = list(parts)
    prompt = parts[0]
    completion = sum(part.completion_tokens for part in parts)
    images = sum(part.completion_image_tokens for part in parts)
    return {
        "prompt_tokens": prompt.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": prompt.prompt_tokens + completion,
        "prompt_tokens_details": {
            "cached_tokens": prompt.cached_tokens,
            "image_tokens": prompt.prompt_image_tokens,
            "text_tokens": prompt.prompt_tokens - prompt.prompt_image_tokens,
        },
        "completion_tokens_details": {
            "image_tokens": images,
            "text_tokens": completion - images,
            "reasoning_tokens": 0,
        },
    }


def logprob_entries(logprobs: Iterable[tuple[int, float]], vocabulary: Any) -> list[dict[str, Any]]:
    """Return log-probabilities in the form of chat completions; image tokens have no bytes."""
    entries = []
    for token, value in logprobs:
        text = vocabulary.token_bytes(token) if token < vocabulary.num_text else b""
        entries.append(
            {
                "token": vocabulary.pieces([token])[0],
                "logprob": max(value, VERY_UNLIKELY),
                "bytes": list(text) if text else None,
                "top_logprobs": [],
            }
        )
    return entries

"""Conversations as a service takes them, and the events of an answer."""

import dataclasses
from collections.abc import Sequence

from PIL import Image

from seed_jax.inference.generation.segments import Generation, ImageSegment

SYSTEM = "system"
# Text, an image, or an image as its codes.
Content = str | Image.Image | ImageSegment


@dataclasses.dataclass(frozen=True)
class ChatMessage:
    """A message of a conversation.

    Attributes:
        role: "system", "user" or "assistant".
        content: text and images in order.
    """

    role: str
    content: Sequence[Content]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt that is ready for the engine.

    Attributes:
        ids: token ids with BOS.
        num_images: images in it.
        num_dropped: oldest messages that were left out because they did not fit.
    """

    ids: tuple[int, ...]
    num_images: int = 0
    num_dropped: int = 0


@dataclasses.dataclass(frozen=True)
class AnswerUsage:
    """Token counts of an answer; an image counts with its delimiters.

    Attributes:
        prompt_tokens: of the prompt.
        prompt_image_tokens: of these, tokens of images.
        cached_tokens: of these, tokens found in the prefix cache.
        completion_tokens: of the answer.
        completion_image_tokens: of these, tokens of images.
    """

    prompt_tokens: int
    prompt_image_tokens: int
    cached_tokens: int
    completion_tokens: int
    completion_image_tokens: int


@dataclasses.dataclass(frozen=True)
class TextDelta:
    """A piece of text that no later token takes back."""

    text: str


@dataclasses.dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities of generated tokens, among those that the image grammar allowed."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class ImageStarted:
    """The answer's image `index` has begun."""

    index: int


@dataclasses.dataclass(frozen=True)
class ImageCodes:
    """The codes of an image are complete."""

    index: int
    codes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class ImageProgress:
    """An image is being drawn: `step` of `steps` are done."""

    index: int
    step: int
    steps: int


@dataclasses.dataclass(frozen=True)
class ImageDrawn:
    """An image has been drawn; images may come in another order than they were generated."""

    index: int
    image: Image.Image


@dataclasses.dataclass(frozen=True)
class Finished:
    """The last event of an answer.

    Attributes:
        reason: "eos", "stop" (a stop string) or "length".
        usage: token counts.
        generation: the whole answer, with its ordered segments.
    """

    reason: str
    usage: AnswerUsage
    generation: Generation


Event = TextDelta | TokenLogprobs | ImageStarted | ImageCodes | ImageProgress | ImageDrawn | Finished

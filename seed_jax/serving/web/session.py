"""The conversation of one browser tab: questions, the answer that is being generated, and how to answer again."""

import asyncio
import contextlib
import dataclasses
import secrets
from collections.abc import AsyncGenerator, Sequence

from PIL import Image

from seed_jax.inference.chat.prompts import ASSISTANT, USER, recent_messages
from seed_jax.inference.chat.transcript import RecordedMessage, Transcript
from seed_jax.inference.drawing.request import DrawOptions
from seed_jax.inference.generation.sampling_params import MAX_SEED, SamplingParams
from seed_jax.inference.generation.segments import ImageSegment, Segment, TextSegment
from seed_jax.serving.messages import (
    SYSTEM,
    ChatMessage,
    Event,
    Finished,
    ImageCodes,
    ImageDrawn,
    ImageProgress,
    ImageStarted,
    TextDelta,
)
from seed_jax.serving.service import SeedService

SNAPSHOT_SECONDS = 0.05  # between two states of an answer that are shown


@dataclasses.dataclass(frozen=True)
class AnswerOptions:
    """How a question is answered.

    Attributes:
        params: decoding options; the seed is replaced by `seed`.
        seed: seed of sampling and drawing; None: a random one.
        draw: options of the image decoder.
        system: text before the conversation.
        max_history: most earlier questions in the prompt; None: as many as fit.
    """

    params: SamplingParams
    seed: int | None = None
    draw: DrawOptions = DrawOptions()
    system: str = ""
    max_history: int | None = None


@dataclasses.dataclass
class ImagePart:
    """An image of an answer while it is generated and drawn."""

    codes: tuple[int, ...] | None = None
    image: Image.Image | None = None
    step: int = 0
    steps: int = 0


class Answer:
    """An answer that grows with the events of the service: text and images in order."""

    def __init__(self, seed: int):
        self.seed = seed
        self.parts: list[str | ImagePart] = []
        self.finish_reason: str | None = None
        self._images: list[ImagePart] = []

    def apply(self, event: Event) -> None:
        """Take an event in."""
        if isinstance(event, TextDelta):
            if self.parts and isinstance(self.parts[-1], str):
                self.parts[-1] += event.text
            else:
                self.parts.append(event.text)
        elif isinstance(event, ImageStarted):
            self._image(event.index)
        elif isinstance(event, ImageCodes):
            self._image(event.index).codes = event.codes
        elif isinstance(event, ImageProgress):
            image = self._image(event.index)
            image.step, image.steps = event.step, event.steps
        elif isinstance(event, ImageDrawn):
            self._image(event.index).image = event.image
        elif isinstance(event, Finished):
            self.finish_reason = event.reason

    def to_message(self) -> RecordedMessage:
        """Return what the history keeps: text, and the images whose codes are complete."""
        kept = [part for part in self.parts if isinstance(part, str) or part.codes is not None]
        segments: list[Segment] = [
            TextSegment(part) if isinstance(part, str) else ImageSegment(part.codes or ()) for part in kept
        ]
        images = tuple(part.image for part in kept if isinstance(part, ImagePart))
        return RecordedMessage(ASSISTANT, tuple(segments), images, self.seed, self.finish_reason or "interrupted")

    def _image(self, index: int) -> ImagePart:
        while len(self._images) <= index:
            part = ImagePart()
            self._images.append(part)
            self.parts.append(part)
        return self._images[index]


class ChatSession:
    """The conversation of one browser tab.

    Args:
        style: prompt style of the model.
    """

    def __init__(self, style: str):
        self.style = style
        self.messages: list[RecordedMessage] = []  # in pairs of question and answer
        self.question: RecordedMessage | None = None  # that is being answered
        self.answer: Answer | None = None
        self.num_dropped = 0  # oldest messages that the last prompt left out
        self.editing: int | None = None  # question that the next message replaces, with everything after it
        self._changed = asyncio.Event()  # the answer has grown, or is to be stopped
        self._stopped = False

    @property
    def transcript(self) -> Transcript:
        return Transcript(tuple(self.messages), self.style)

    @property
    def is_answering(self) -> bool:
        return self.question is not None

    def reset(self, messages: Sequence[RecordedMessage] = ()) -> None:
        """Begin a new conversation, or continue a stored one."""
        self.messages = list(messages)
        self.question = self.answer = self.editing = None
        self.num_dropped = 0

    def stop(self) -> None:
        """End the answer that is being generated; call it in the event loop of `ask`.

        Closing `ask` does the same, but Gradio closes a generator only after its next value.
        """
        self._stopped = True
        self._changed.set()

    def undo(self, number: int | None = None) -> RecordedMessage | None:
        """Remove a question with everything after it; return the question.

        Args:
            number: which question, from 0; by default the last one.
        """
        index = len(self.messages) - 2 if number is None else 2 * number
        if not 0 <= index < len(self.messages):
            return None
        message = self.messages[index]
        del self.messages[index:]
        self.editing = None
        return message

    async def ask(
        self, service: SeedService, message: RecordedMessage, options: AnswerOptions
    ) -> AsyncGenerator[None, None]:
        """Answer a message, yielding whenever `answer` has changed; closing the generator stops the answer.

        Question and answer join the history however the answer ends, unless nothing of it was generated.

        Raises:
            UserError: the message cannot be answered; the history is unchanged.
            QueueFullError: too many answers are being generated.
        """
        seed = secrets.randbelow(MAX_SEED + 1) if options.seed is None else options.seed
        params = dataclasses.replace(options.params, seed=seed)
        self.question, self.answer = message, Answer(seed)
        self._changed, self._stopped = asyncio.Event(), False
        try:
            yield
            with service.reserve():
                history = recent_messages(self.messages, options.max_history)
                contents = [ChatMessage(SYSTEM, (options.system,))] if options.system.strip() else []
                contents += [ChatMessage(one.role, _content(one.segments)) for one in (*history, message)]
                prompt = await service.prepare(contents, params, drop_oldest=True)
                self.num_dropped = len(self.messages) - len(history) + prompt.num_dropped
                events = service.answer(prompt, params, options.draw)
                async with contextlib.aclosing(self._snapshots(events, self.answer)) as snapshots:
                    async for _ in snapshots:
                        yield
        finally:
            answered = self.answer.to_message()
            if answered.segments or self.answer.finish_reason is not None:
                self.messages += [message, answered]
            self.question = self.answer = None

    async def _snapshots(self, events: AsyncGenerator[Event, None], answer: Answer) -> AsyncGenerator[None, None]:
        """Apply events as they come, and yield as often as the reader takes it, who never holds them up."""

        async def apply() -> None:
            async with contextlib.aclosing(events) as stream:
                async for event in stream:
                    answer.apply(event)
                    self._changed.set()

        task = asyncio.create_task(apply())
        task.add_done_callback(lambda _: self._changed.set())
        try:
            while not (task.done() or self._stopped):
                await self._changed.wait()
                self._changed.clear()
                yield
                await asyncio.sleep(SNAPSHOT_SECONDS)
            if task.done():
                task.result()  # raises what the service raised
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _content(segments: Sequence[Segment]) -> tuple[str | ImageSegment, ...]:
    return tuple(
        segment.text if isinstance(segment, TextSegment) else segment
        for segment in segments
        if isinstance(segment, TextSegment | ImageSegment)
    )


def user_message(segments: Sequence[Segment], images: Sequence[Image.Image | None]) -> RecordedMessage:
    """Return a question."""
    return RecordedMessage(USER, tuple(segments), tuple(images))

"""Multi-turn conversations with SEED-LLaMA; the history keeps whole messages, and images as their codes.

The original encodes all images again in every request and fails for good after one malformed image (spec F.4).
"""

import dataclasses
from collections.abc import Iterator, Sequence

from PIL import Image

from seed_jax.inference.chat.prompts import ASSISTANT, USER, fit_prompt, max_prompt_tokens, recent_messages
from seed_jax.inference.chat.transcript import RecordedMessage, Transcript
from seed_jax.inference.generation.batching import Request
from seed_jax.inference.generation.generator import STREAM_CHUNK_TOKENS, Generator
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.generation.segments import Generation, MalformedSegment, Segment


@dataclasses.dataclass(frozen=True)
class Turn:
    """A user message with the request that answers it.

    Attributes:
        message: the user message.
        request: prompt and decoding options.
        num_dropped: earlier messages that the prompt leaves out.
    """

    message: RecordedMessage
    request: Request
    num_dropped: int


class Conversation:
    """The messages so far, and how the next one is answered.

    Example:
        conversation = Conversation(generator, "vicuna", SamplingParams(temperature=1.0, top_p=0.5))
        for piece in conversation.ask([TextSegment("Draw a cat.")]):
            print(piece)

    Args:
        generator: the language model.
        style: "vicuna" or "llama2"; "base" and "seed1" have no roles: every message is answered on its own.
        sampling_params: decoding options.
        as_one: encode the history as one text, as the original's demo does, instead of per message as in training.
        max_history: most earlier questions in a prompt; None: as many as fit.
    """

    def __init__(
        self,
        generator: Generator,
        style: str,
        sampling_params: SamplingParams | None = None,
        *,
        as_one: bool = False,
        max_history: int | None = None,
    ):
        self.generator = generator
        self.style = style
        self.sampling_params = sampling_params or SamplingParams()
        self.as_one = as_one
        self.max_history = max_history
        self.messages: list[RecordedMessage] = []
        self.num_dropped = 0  # messages that the last prompt left out

    def ask(
        self, segments: Sequence[Segment], chunk_tokens: int = STREAM_CHUNK_TOKENS, **changes
    ) -> Iterator[Segment | Generation]:
        """Stream the answer to a user message, as `Generator.stream` does.

        Message and answer join the history when the answer is complete or was interrupted. A message that is refused
        leaves the history unchanged; malformed images of an answer are not repeated to the model.

        Args:
            segments: text and images of the message.
            chunk_tokens: decode steps between two pieces.
            changes: fields of `SamplingParams` by name.
        """
        turn = self.prepare(segments, **changes)
        for piece in self.generator.stream(turn.request, chunk_tokens):
            if isinstance(piece, Generation):
                self.record(turn, piece)
            yield piece

    def prepare(self, segments: Sequence[Segment], images: Sequence[Image.Image | None] = (), **changes) -> Turn:
        """Return the request for the answer to a user message; the history stays as it is until `record`.

        Args:
            segments: text and images of the message.
            images: what the images look like, for the transcript.
            changes: fields of `SamplingParams` by name.

        Raises:
            UserError: the message is too long, or a decoding option is out of range.
        """
        params = dataclasses.replace(self.sampling_params, **changes)
        message = RecordedMessage(USER, tuple(segments), tuple(images))
        history = recent_messages(self.messages, self.max_history)
        max_tokens = max_prompt_tokens(self.generator.config.max_length, params.max_new_tokens)
        fitted = fit_prompt([*history, message], self.style, self.generator.vocabulary, max_tokens, as_one=self.as_one)
        num_dropped = len(self.messages) - len(history) + fitted.num_dropped
        return Turn(message, Request(fitted.ids, params), num_dropped)

    def record(self, turn: Turn, answer: Generation, images: Sequence[Image.Image | None] = ()) -> None:
        """Append a message and its answer to the history.

        Args:
            turn: the message, as prepared for the present history.
            answer: the answer.
            images: what the images of the answer look like, for the transcript.
        """
        kept = tuple(part for part in answer.segments if not isinstance(part, MalformedSegment))
        self.num_dropped = turn.num_dropped
        seed = turn.request.sampling_params.seed
        self.messages += [turn.message, RecordedMessage(ASSISTANT, kept, tuple(images), seed, answer.finish_reason)]

    def undo(self) -> RecordedMessage | None:
        """Remove the last message and its answer from the history; return the message, or None if there is none."""
        if not self.messages:
            return None
        message = self.messages[-2]
        del self.messages[-2:]
        return message

    def reset(self) -> None:
        """Clear the history."""
        self.messages = []
        self.num_dropped = 0

    @property
    def transcript(self) -> Transcript:
        return Transcript(tuple(self.messages), self.style)

"""Multi-turn conversations with SEED-LLaMA; the history keeps whole messages, and images as their codes.

The original encodes all images again in every request and fails for good after one malformed image (spec F.4).
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from seed_jax.errors import UserError
from seed_jax.files import write_json
from seed_jax.inference.chat.prompts import ASSISTANT, SINGLE_TURN_STYLES, USER, FittedPrompt, Message, fit_prompt
from seed_jax.inference.generation.batching import Request
from seed_jax.inference.generation.generator import STREAM_CHUNK_TOKENS, Generator
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.generation.segments import Generation, MalformedSegment, Segment


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
        self.messages: list[Message] = []
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
        params = dataclasses.replace(self.sampling_params, **changes)
        message = Message(USER, tuple(segments))
        history = self._history()
        fitted = self._fit([*history, message], params)
        for piece in self.generator.stream(Request(fitted.ids, params), chunk_tokens):
            if isinstance(piece, Generation):
                kept = tuple(part for part in piece.segments if not isinstance(part, MalformedSegment))
                self.num_dropped = len(self.messages) - len(history) + fitted.num_dropped
                self.messages += [message, Message(ASSISTANT, kept)]
            yield piece

    def reset(self) -> None:
        """Clear the history."""
        self.messages = []
        self.num_dropped = 0

    def save(self, path: str | Path) -> None:
        """Write the messages as JSON: `[{"role", "segments": [{"type", "text" | "codes"}]}]`."""
        path = Path(path)
        if not path.parent.is_dir():
            raise UserError(f"The directory of {path} does not exist: create {path.parent}.")
        messages = [
            {"role": message.role, "segments": [segment.to_dict() for segment in message.segments]}
            for message in self.messages
        ]
        write_json(path, messages, indent=1)

    def _history(self) -> list[Message]:
        """Return the earlier messages that a prompt may contain."""
        limit = 0 if self.style in SINGLE_TURN_STYLES else self.max_history
        return self.messages if limit is None else self.messages[max(len(self.messages) - 2 * limit, 0) :]

    def _fit(self, messages: Sequence[Message], params: SamplingParams) -> FittedPrompt:
        """Leave room for the requested answer, but for at most half of the context."""
        context = self.generator.config.max_length
        max_tokens = context - min(params.max_new_tokens, context // 2)
        return fit_prompt(messages, self.style, self.generator.vocabulary, max_tokens, as_one=self.as_one)

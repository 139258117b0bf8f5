"""A conversation of several turns with SEED-LLaMA, whose history is kept in whole turns and images as their codes.

The original encodes pictures anew in every turn's request and fails for good after one malformed image (spec F.4).
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from seed_jax.errors import UserError
from seed_jax.inference.chat.prompts import ASSISTANT, USER, FittedPrompt, Turn, fit_prompt
from seed_jax.inference.generation.generator import STREAM_CHUNK, Generation, Generator, Request
from seed_jax.inference.generation.sampling_params import Settings
from seed_jax.inference.generation.segments import MalformedSegment, Segment


class Conversation:
    """Turns so far, and how the next one is answered.

    Args:
        style: "vicuna" or "llama2"; "base" has no roles: every turn is answered on its own.
        as_one: encode the history as one text, as the original's demo did, instead of turn by turn as in training.
        history: most earlier questions that a prompt repeats; None: as many as fit.
    """

    def __init__(
        self,
        generator: Generator,
        style: str,
        settings: Settings | None = None,
        *,
        as_one: bool = False,
        history: int | None = None,
    ):
        self.generator, self.style, self.settings = generator, style, settings or Settings()
        self.as_one, self.history = as_one, history
        self.turns: list[Turn] = []
        self.dropped = 0  # turns that the last prompt left out

    def ask(self, segments: Sequence[Segment], chunk: int = STREAM_CHUNK, **changes) -> Iterator[Segment | Generation]:
        """Answer a turn bit by bit, as `Generator.stream` does; `changes` are fields of `Settings` by name.

        The turn and its answer become history when the answer is complete or has been interrupted. What was refused
        leaves no trace; image tokens that make no image are not repeated to the model.
        """
        settings, turn = dataclasses.replace(self.settings, **changes), Turn(USER, tuple(segments))
        fitted = self._fit([*self._repeated(), turn], settings)
        answer = None
        for piece in self.generator.stream(Request(fitted.ids, settings), chunk):
            answer = piece
            yield piece
        said = tuple(s for s in answer.segments if not isinstance(s, MalformedSegment))
        self.dropped = len(self.turns) - len(self._repeated()) + fitted.dropped
        self.turns += [turn, Turn(ASSISTANT, said)]

    def reset(self) -> None:
        """Forget everything said."""
        self.turns, self.dropped = [], 0

    def save(self, path: str | Path) -> None:
        """Write the turns as JSON: `[{"role", "segments": [{"type", "text" | "codes"}]}]`."""
        path = Path(path)
        if not path.parent.is_dir():
            raise UserError(f"The folder of {path} does not exist: create {path.parent}.")
        turns = [{"role": turn.role, "segments": [s.to_dict() for s in turn.segments]} for turn in self.turns]
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(json.dumps(turns, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(path)

    def _repeated(self) -> list[Turn]:
        """Return the earlier turns that a prompt may repeat."""
        most = 0 if self.style == "base" else self.history
        return self.turns if most is None else self.turns[len(self.turns) - min(2 * most, len(self.turns)) :]

    def _fit(self, turns: Sequence[Turn], settings: Settings) -> FittedPrompt:
        """Leave room for the answer that was asked for, but for no more than half of the context."""
        limit = self.generator.config.max_length
        room = limit - min(settings.max_new_tokens, limit // 2)
        return fit_prompt(turns, self.style, self.generator.vocabulary, room, as_one=self.as_one)

"""Dialogues: turns of user and model between the role markers that the model was trained with (spec C.3, D.4).

Every user message and every reply is a segment of its own, so that a later turn begins with U+2581, <0x0A>, US, ER, :.
Replies are trained and so is the single EOS at the end; there is none between turns unless requested.
"""

import dataclasses
from collections.abc import Sequence

from seed_jax.data.templates.layout import ContentPart, SampleLayout, Segment
from seed_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Markers:
    """Role markers of a prompt style.

    Attributes:
        before: text before a user message.
        after: text between a user message and the reply.
        between: text between a reply and the next `before`.
    """

    before: str
    after: str
    between: str

    @classmethod
    def of_style(cls, style: str, separator: str = "\n") -> "Markers":
        """Return the markers of the 8B models ("vicuna") or of the 14B models ("llama2")."""
        if style == "vicuna":
            return cls("USER: ", f"{separator}ASSISTANT:", separator)
        if style == "llama2" and separator == "\n":
            return cls("[INST] ", " [/INST]\n", "\n")
        if style == "llama2":
            raise UserError(f"sep is {separator!r}, but the style llama2 has fixed markers: omit sep.")
        raise UserError(f"style is {style!r}, expected 'vicuna' (8B models) or 'llama2' (14B models).")

    @classmethod
    def of_roles(cls, roles: Sequence[str], separator: str) -> "Markers":
        """Return markers with custom role names and a blank after each colon (pre-training form)."""
        if isinstance(roles, str) or len(roles) != 2 or not all(isinstance(role, str) for role in roles):
            raise UserError(f"roles is {roles!r}, expected two names such as ['USER', 'ASSISTANT'].")
        return cls(f"{roles[0]}: ", f"{separator}{roles[1]}: ", separator)


@dataclasses.dataclass(frozen=True)
class DialogueTurn:
    """A user message and the reply to it, or None for an open question."""

    user: tuple[ContentPart, ...]
    reply: tuple[ContentPart, ...] | None


def dialogue(turns: Sequence[DialogueTurn], markers: Markers, system: str = "") -> SampleLayout:
    """Lay out turns; without any turn only BOS and a trained EOS remain, as in the original."""
    segments = [Segment((system if system.endswith("\n") else f"{system}\n",), trained=False)] if system else []
    for number, turn in enumerate(turns):
        before = (markers.between if number else "") + markers.before
        segments.append(Segment((before, *turn.user, markers.after), trained=False))
        if turn.reply is not None:
            segments.append(Segment(turn.reply, trained=True, ends_turn=True))
    return SampleLayout(tuple(segments))


def alternating(texts: Sequence[str]) -> list[DialogueTurn]:
    """Group texts into turns; they alternate between user and model, the user first."""
    return [DialogueTurn((texts[i],), tuple(texts[i + 1 : i + 2]) or None) for i in range(0, len(texts), 2)]

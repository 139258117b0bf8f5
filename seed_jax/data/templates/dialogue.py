"""Dialogues: turns of a user and a model between the role markers that the model was trained with (spec C.3, D.4).

Every user side and every reply is a segment of its own, so that a later turn begins with U+2581, <0x0A>, US, ER, :.
Replies are trained and so is the one EOS at the very end; there is none between turns unless asked for.
"""

import dataclasses
from collections.abc import Sequence

from seed_jax.data.templates.layout import Layout, Part, Segment
from seed_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Markers:
    """What stands before a user's words, after them, and before the next turn: `before` follows `between`."""

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
            raise UserError(f"sep is {separator!r}, but the style llama2 has fixed markers: leave sep out.")
        raise UserError(f"style is {style!r}, expected 'vicuna' (8B models) or 'llama2' (14B models).")

    @classmethod
    def of_roles(cls, roles: Sequence[str], separator: str) -> "Markers":
        """Return markers of freely named roles, with a blank after each colon (pre-training form)."""
        if isinstance(roles, str) or len(roles) != 2 or not all(isinstance(role, str) for role in roles):
            raise UserError(f"roles is {roles!r}, expected two names such as ['USER', 'ASSISTANT'].")
        return cls(f"{roles[0]}: ", f"{separator}{roles[1]}: ", separator)


@dataclasses.dataclass(frozen=True)
class Turn:
    """What the user says and what the model answers; no reply: the question stays open."""

    user: tuple[Part, ...]
    reply: tuple[Part, ...] | None


def dialogue(turns: Sequence[Turn], markers: Markers, system: str = "") -> Layout:
    """Lay out turns; with no turn at all only BOS and a trained EOS remain, as in the original."""
    segments = [Segment((system if system.endswith("\n") else f"{system}\n",), trained=False)] if system else []
    for number, turn in enumerate(turns):
        before = (markers.between if number else "") + markers.before
        segments.append(Segment((before, *turn.user, markers.after), trained=False))
        if turn.reply is not None:
            segments.append(Segment(turn.reply, trained=True, ends_turn=True))
    return Layout(tuple(segments))


def alternating(texts: Sequence[str]) -> list[Turn]:
    """Read user and model texts in turn, the user first."""
    return [Turn((texts[i],), tuple(texts[i + 1 : i + 2]) or None) for i in range(0, len(texts), 2)]

"""Conversations of given turns, with or without images: pre-training form and instruction form."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from seed_jax.data.templates.dialogue import Markers, Turn, alternating, dialogue
from seed_jax.data.templates.layout import Choice, Fields, Layout, Part, Setting, codes_of, text_of, with_full_stop
from seed_jax.data.templates.pretrain import order
from seed_jax.errors import UserError

NO_TURNS = "the record has no turns (field 'data')"


@dataclasses.dataclass(frozen=True)
class Chat:
    """What all instruction tasks share.

    Attributes:
        style: role markers: "vicuna" (USER: ... ASSISTANT:) for 8B, "llama2" ([INST] ... [/INST]) for 14B.
        eos_between_turns: put EOS, trained, after every reply, not only at the end.
    """

    style: str = "vicuna"
    eos_between_turns: bool = False

    def __post_init__(self):
        Markers.of_style(self.style)

    def lay_out(self, turns: Sequence[Turn], system: str = "") -> Layout:
        return dialogue(turns, Markers.of_style(self.style), system)

    def choose(self, fields: Fields, setting: Setting, rng: np.random.Generator) -> dict[str, Any]:
        return {}


@dataclasses.dataclass(frozen=True)
class TextConversation(Chat):
    """Texts of user and model in turn. Field: `data`: list of texts."""

    sep: str = "\n"
    system_message: str = ""

    def __post_init__(self):
        Markers.of_style(self.style, self.sep)

    def render(self, fields: Fields, choice: Choice, setting: Setting) -> Layout:
        texts = turns_of(fields)
        if texts is None:
            return Layout.dropped(NO_TURNS)
        return dialogue(alternating(texts), Markers.of_style(self.style, self.sep), self.system_message)


@dataclasses.dataclass(frozen=True)
class VisualQuestion(Chat):
    """A conversation about images, which come first. Fields: `image_ids`: list of images; and one of

    - `data`: texts of user and model in turn; they are stripped and replies get a full stop;
    - `instruction`, `inputs`, `outputs`: one turn, taken as it is; `inputs` is the question unless it is blank.
    """

    sep: str = "\n"

    def __post_init__(self):
        Markers.of_style(self.style, self.sep)

    def render(self, fields: Fields, choice: Choice, setting: Setting) -> Layout:
        turns = visual_turns(fields)
        if turns is None:
            return Layout.dropped("the record lacks images, or has neither turns nor an instruction")
        if "data" in fields:
            turns = [Turn(tuple(map(str.strip, turn.user)), _stopped(turn.reply)) for turn in turns]
        turns = with_images(turns, fields["image_ids"])
        return dialogue(turns, Markers.of_style(self.style, self.sep))


def _stopped(reply: tuple[Part, ...] | None) -> tuple[Part, ...] | None:
    return reply if reply is None else tuple(with_full_stop(text.strip()) for text in reply)


@dataclasses.dataclass(frozen=True)
class PretrainTextConversation:
    """As `TextConversation`, with freely named roles and a blank before the reply."""

    roles: Sequence[str] = ("USER", "ASSISTANT")
    sep: str = "\n"
    system_message: str = ""
    eos_between_turns: bool = False

    def __post_init__(self):
        Markers.of_roles(self.roles, self.sep)

    def choose(self, fields: Fields, setting: Setting, rng: np.random.Generator) -> dict[str, Any]:
        return {}

    def render(self, fields: Fields, choice: Choice, setting: Setting) -> Layout:
        texts = turns_of(fields)
        if texts is None:
            return Layout.dropped(NO_TURNS)
        return dialogue(alternating(texts), Markers.of_roles(self.roles, self.sep), self.system_message)


@dataclasses.dataclass(frozen=True)
class PretrainVisualQuestion(PretrainTextConversation):
    """As `VisualQuestion`, texts taken as they are, images before or after the first user text with equal chance."""

    def choose(self, fields: Fields, setting: Setting, rng: np.random.Generator) -> dict[str, Any]:
        return {"order": order(rng, 0.5)} if fields.get("image_ids") is not None else {}

    def render(self, fields: Fields, choice: Choice, setting: Setting) -> Layout:
        turns = visual_turns(fields)
        if turns is None:
            return Layout.dropped("the record lacks images, or has neither turns nor an instruction")
        turns = with_images(turns, fields["image_ids"], choice["order"] == "image_first")
        return dialogue(turns, Markers.of_roles(self.roles, self.sep), self.system_message)


def turns_of(fields: Fields) -> list[str] | None:
    """Return the texts under `data`, or None where there are none at all."""
    texts = fields.get("data")
    if texts is None:
        return None
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise UserError("a record has something other than texts in the field 'data', expected a list of texts.")
    return list(texts)


def visual_turns(fields: Fields) -> list[Turn] | None:
    """Return the turns in either form, `data` first, still without images; None where there is neither."""
    if fields.get("image_ids") is None:
        return None
    codes_of(fields)
    if "data" in fields:
        texts = turns_of(fields)
        return None if texts is None else alternating(texts)
    if "instruction" not in fields:
        return None
    inputs = text_of(fields, "inputs")
    question = inputs if inputs.strip() else text_of(fields, "instruction")
    return [Turn((question,), (text_of(fields, "outputs"),))]


def with_images(turns: list[Turn], images: Sequence[Part] | np.ndarray, first: bool = True) -> list[Turn]:
    """Put all images before or after what the user says first; no turn, no images."""
    if not turns:
        return turns
    user = (*images, *turns[0].user) if first else (*turns[0].user, *images)
    return [Turn(user, turns[0].reply), *turns[1:]]

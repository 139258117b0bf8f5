"""Conversations of given turns, with or without images: pre-training form and instruction form."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from seed_jax.data.templates.dialogue import DialogueTurn, Markers, alternating, dialogue
from seed_jax.data.templates.layout import (
    BaseTask,
    ContentPart,
    Fields,
    RandomChoices,
    RenderContext,
    SampleLayout,
    codes_of,
    text_of,
    with_full_stop,
)
from seed_jax.data.templates.pretrain import draw_order
from seed_jax.errors import UserError

NO_TURNS = "the record has no turns (field 'data')"
NO_IMAGES_OR_TURNS = "the record lacks images, or has neither turns nor an instruction"


@dataclasses.dataclass(frozen=True)
class Chat(BaseTask):
    """Base class of all instruction tasks.

    Attributes:
        style: role markers: "vicuna" (USER: ... ASSISTANT:) for 8B, "llama2" ([INST] ... [/INST]) for 14B.
        eos_between_turns: insert a trained EOS after every reply, not only at the end.
    """

    style: str = "vicuna"
    eos_between_turns: bool = False

    def __post_init__(self):
        Markers.of_style(self.style)

    def lay_out(self, turns: Sequence[DialogueTurn], system: str = "") -> SampleLayout:
        return dialogue(turns, Markers.of_style(self.style), system)


@dataclasses.dataclass(frozen=True)
class TextConversation(Chat):
    """A conversation without images. Field: `data`: texts of user and model in turn.

    Attributes:
        sep: separator between turns.
        system_message: text before the first turn.
    """

    sep: str = "\n"
    system_message: str = ""

    def __post_init__(self):
        Markers.of_style(self.style, self.sep)

    def render(self, fields: Fields, choice: RandomChoices, context: RenderContext) -> SampleLayout:
        texts = turn_texts(fields)
        if texts is None:
            return SampleLayout.dropped(NO_TURNS)
        return dialogue(alternating(texts), Markers.of_style(self.style, self.sep), self.system_message)


@dataclasses.dataclass(frozen=True)
class VisualQuestion(Chat):
    """A conversation about images, which come first. Fields: `image_ids`: list of images; and one of

    - `data`: texts of user and model in turn; they are stripped and replies get a full stop;
    - `instruction`, `inputs`, `outputs`: one turn, used verbatim; `inputs` is the question unless it is blank.
    """

    sep: str = "\n"

    def __post_init__(self):
        Markers.of_style(self.style, self.sep)

    def render(self, fields: Fields, choice: RandomChoices, context: RenderContext) -> SampleLayout:
        turns = visual_turns(fields)
        if turns is None:
            return SampleLayout.dropped(NO_IMAGES_OR_TURNS)
        if "data" in fields:
            turns = [DialogueTurn(_stripped(turn.user), _with_full_stops(turn.reply)) for turn in turns]
        turns = with_images(turns, fields["image_ids"])
        return dialogue(turns, Markers.of_style(self.style, self.sep))


def _stripped(parts: tuple[ContentPart, ...]) -> tuple[ContentPart, ...]:
    return tuple(part.strip() if isinstance(part, str) else part for part in parts)


def _with_full_stops(reply: tuple[ContentPart, ...] | None) -> tuple[ContentPart, ...] | None:
    if reply is None:
        return None
    return tuple(with_full_stop(part.strip()) if isinstance(part, str) else part for part in reply)


@dataclasses.dataclass(frozen=True)
class PretrainTextConversation(BaseTask):
    """As `TextConversation`, with custom role names and a blank before the reply."""

    roles: Sequence[str] = ("USER", "ASSISTANT")
    sep: str = "\n"
    system_message: str = ""
    eos_between_turns: bool = False

    def __post_init__(self):
        Markers.of_roles(self.roles, self.sep)

    def render(self, fields: Fields, choice: RandomChoices, context: RenderContext) -> SampleLayout:
        texts = turn_texts(fields)
        if texts is None:
            return SampleLayout.dropped(NO_TURNS)
        return dialogue(alternating(texts), Markers.of_roles(self.roles, self.sep), self.system_message)


@dataclasses.dataclass(frozen=True)
class PretrainVisualQuestion(PretrainTextConversation):
    """As `VisualQuestion`, with verbatim texts, and images before or after the first user text at random."""

    def choose(self, fields: Fields, context: RenderContext, rng: np.random.Generator) -> dict[str, Any]:
        return {"order": draw_order(rng, 0.5)} if fields.get("image_ids") is not None else {}

    def render(self, fields: Fields, choice: RandomChoices, context: RenderContext) -> SampleLayout:
        turns = visual_turns(fields)
        if turns is None:
            return SampleLayout.dropped(NO_IMAGES_OR_TURNS)
        turns = with_images(turns, fields["image_ids"], choice["order"] == "image_first")
        return dialogue(turns, Markers.of_roles(self.roles, self.sep), self.system_message)


def turn_texts(fields: Fields) -> list[str] | None:
    """Return the texts under `data`, or None if the field is missing."""
    texts = fields.get("data")
    if texts is None:
        return None
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise UserError("field 'data' of a record is not a list of texts: check how the dataset was converted.")
    return list(texts)


def visual_turns(fields: Fields) -> list[DialogueTurn] | None:
    """Return the turns in either form, `data` first, without images; None if there is neither."""
    if fields.get("image_ids") is None:
        return None
    codes_of(fields)
    if "data" in fields:
        texts = turn_texts(fields)
        return None if texts is None else alternating(texts)
    if "instruction" not in fields:
        return None
    inputs = text_of(fields, "inputs")
    question = inputs if inputs.strip() else text_of(fields, "instruction")
    return [DialogueTurn((question,), (text_of(fields, "outputs"),))]


def with_images(
    turns: list[DialogueTurn], images: Sequence[ContentPart] | np.ndarray, first: bool = True
) -> list[DialogueTurn]:
    """Insert all images before (`first`) or after the first user message; nothing if there is no turn."""
    if not turns:
        return turns
    user = (*images, *turns[0].user) if first else (*turns[0].user, *images)
    return [DialogueTurn(user, turns[0].reply), *turns[1:]]

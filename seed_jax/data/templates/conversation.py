"""Instruction tasks on conversations, videos and interleaved documents (spec D.4)."""

import dataclasses
import re
from typing import Any

from seed_jax.data.templates.chat import Chat, with_images
from seed_jax.data.templates.dialogue import DialogueTurn
from seed_jax.data.templates.layout import (
    ContentPart,
    Fields,
    RandomChoices,
    RenderContext,
    SampleLayout,
    codes_of,
    text_of,
    with_full_stop,
)

QUESTION = "Question: "
ANSWER = "Answer: "
NOISE = "\nQA_GT_caption_based_noisy"  # suffix of some answers of Video-ChatGPT
DESCRIPTIONS = "Image Descriptions"  # marks descriptions among the conversations of the source data

_IMAGE = re.compile(r"<img>((?:<img_[0-9]{5}>)*)</img>")


@dataclasses.dataclass(frozen=True)
class Conversation(Chat):
    """Several turns about one image.

    Fields: `image_ids`; `question` and `answer`: lists of texts, or one text each with the turns after "Question: "
    and "Answer: ". Questions without an answer are dropped; a record without turns gives BOS and EOS, as in the
    original.
    """

    def render(self, fields: Fields, choice: RandomChoices, context: RenderContext) -> SampleLayout:
        questions = [] if DESCRIPTIONS in str(fields.get("question")) else _listed(fields, "question", QUESTION)
        answers = map(with_full_stop, _listed(fields, "answer", ANSWER))
        turns = [DialogueTurn((question,), (answer,)) for question, answer in zip(questions, answers, strict=False)]
        return self.lay_out(with_images(turns, [codes_of(fields)]))


@dataclasses.dataclass(frozen=True)
class VideoConversation(Chat):
    """Several turns about a video; answers are used without adding full stops.

    Fields: as `Conversation`, with the codes of all frames in one flat list.
    """

    def render(self, fields: Fields, choice: RandomChoices, context: RenderContext) -> SampleLayout:
        questions, answers = _listed(fields, "question", QUESTION), _listed(fields, "answer", ANSWER)
        if questions and answers and len(questions) != len(answers):
            return SampleLayout.dropped("the numbers of questions and answers differ")
        turns = [DialogueTurn((question,), (answer,)) for question, answer in zip(questions, answers, strict=False)]
        return self.lay_out(with_images(turns, context.split(codes_of(fields))))


@dataclasses.dataclass(frozen=True)
class VideoQa(Chat):
    """One question about a video. Fields: `image_ids` (codes of all frames in one flat list), `question`, `answer`."""

    def render(self, fields: Fields, choice: RandomChoices, context: RenderContext) -> SampleLayout:
        frames = context.split(codes_of(fields))
        answer = with_full_stop(text_of(fields, "answer").strip().replace(NOISE, ""))
        return self.lay_out([DialogueTurn((*frames, text_of(fields, "question").strip()), (answer,))])


@dataclasses.dataclass(frozen=True)
class Interleaved(Chat):
    """One turn of interleaved texts and images.

    Fields: `instruction`, `response`: each a text with its images written as tokens, or a list of texts and images
    (codes).
    """

    def render(self, fields: Fields, choice: RandomChoices, context: RenderContext) -> SampleLayout:
        return self.lay_out([DialogueTurn(_parts(fields, "instruction"), _parts(fields, "response"))])


def _listed(fields: Fields, key: str, marker: str) -> list[str]:
    """Return the stripped texts of a list, or the stripped parts of a text after each marker."""
    value = fields.get(key)
    pieces = value if isinstance(value, list | tuple) else text_of(fields, key).split(marker)[1:]
    return [piece.strip() for piece in pieces]


def _parts(fields: Fields, key: str) -> tuple[ContentPart, ...]:
    """Parse images written as tokens in a text, so that they are validated like all others."""
    if isinstance(fields.get(key), list | tuple):
        return tuple(fields[key])
    pieces: list[Any] = _IMAGE.split(text_of(fields, key))
    pieces[1::2] = [[int(code) for code in re.findall("[0-9]+", codes)] for codes in pieces[1::2]]
    return tuple(pieces)

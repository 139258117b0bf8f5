"""Instruction tasks with marked-up or free text: conversations, videos, interleaved documents (spec D.4)."""

import dataclasses
import re
from typing import Any

from seed_jax.data.templates.chat import Chat, with_images
from seed_jax.data.templates.dialogue import Turn
from seed_jax.data.templates.layout import Choice, Fields, Layout, Part, Setting, codes_of, text_of, with_full_stop

QUESTION, ANSWER = "Question: ", "Answer: "
NOISE = "\nQA_GT_caption_based_noisy"  # ends some answers of Video-ChatGPT
DESCRIPTIONS = "Image Descriptions"  # marks records of the source data that describe, not converse

_IMAGE = re.compile(r"<img>((?:<img_[0-9]{5}>)*)</img>")


@dataclasses.dataclass(frozen=True)
class Conversation(Chat):
    """Several turns about one image. Fields: `image_ids`, `question`, `answer`: lists of texts,

    or texts with the turns after "Question: " and "Answer: ". What has no partner is left out; a record without turns
    gives BOS and EOS, as in the original.
    """

    def render(self, fields: Fields, choice: Choice, setting: Setting) -> Layout:
        questions = [] if DESCRIPTIONS in str(fields.get("question")) else _listed(fields, "question", QUESTION)
        answers = map(with_full_stop, _listed(fields, "answer", ANSWER))
        turns = [Turn((ask,), (reply,)) for ask, reply in zip(questions, answers, strict=False)]
        return self.lay_out(with_images(turns, [codes_of(fields)]))


@dataclasses.dataclass(frozen=True)
class VideoConversation(Chat):
    """Several turns about a video, answers taken without adding full stops. Fields: as `Conversation`, frames flat."""

    def render(self, fields: Fields, choice: Choice, setting: Setting) -> Layout:
        questions, answers = _listed(fields, "question", QUESTION), _listed(fields, "answer", ANSWER)
        if questions and answers and len(questions) != len(answers):
            return Layout.dropped("the numbers of questions and answers differ")
        turns = [Turn((ask,), (reply,)) for ask, reply in zip(questions, answers, strict=False)]
        return self.lay_out(with_images(turns, setting.split(codes_of(fields))))


@dataclasses.dataclass(frozen=True)
class VideoQa(Chat):
    """One question about a video. Fields: `image_ids` (frames, flat), `question`, `answer`."""

    def render(self, fields: Fields, choice: Choice, setting: Setting) -> Layout:
        frames = setting.split(codes_of(fields))
        answer = with_full_stop(text_of(fields, "answer").strip().replace(NOISE, ""))
        return self.lay_out([Turn((*frames, text_of(fields, "question").strip()), (answer,))])


@dataclasses.dataclass(frozen=True)
class Interleaved(Chat):
    """One turn of texts with images among them. Fields: `instruction`, `response`.

    Each is a text with its images written out as tokens, or a list of texts and images (codes).
    """

    def render(self, fields: Fields, choice: Choice, setting: Setting) -> Layout:
        return self.lay_out([Turn(_parts(fields, "instruction"), _parts(fields, "response"))])


def _listed(fields: Fields, key: str, marker: str) -> list[str]:
    """Return the stripped texts of a list, or the stripped pieces of a text that follow a marker."""
    value = fields.get(key)
    pieces = value if isinstance(value, list | tuple) else text_of(fields, key).split(marker)[1:]
    return [piece.strip() for piece in pieces]


def _parts(fields: Fields, key: str) -> tuple[Part, ...]:
    """Take written-out images out of a text, so that they are checked like all others."""
    if isinstance(fields.get(key), list | tuple):
        return tuple(fields[key])
    pieces: list[Any] = _IMAGE.split(text_of(fields, key))
    pieces[1::2] = [[int(code) for code in re.findall("[0-9]+", codes)] for codes in pieces[1::2]]
    return tuple(pieces)

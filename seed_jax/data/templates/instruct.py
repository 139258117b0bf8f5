"""Instruction tasks that make or change images, and the one-question tasks (spec D.4)."""

import dataclasses
import re
from typing import Any

import numpy as np

from seed_jax.data.templates.chat import Chat
from seed_jax.data.templates.dialogue import Turn
from seed_jax.data.templates.layout import Choice, Fields, Layout, Setting, codes_of, text_of, with_full_stop


@dataclasses.dataclass(frozen=True)
class Qa(Chat):
    """An image with a question and an answer, or the image to be made from its caption.

    Fields: `image_ids`, `question`, `answer`; without a question the caption is in `text` (generation only).

    Attributes:
        reverse_ratio: 0.0: always understanding; else the probability of understanding, so -1.0: always generation.
    """

    reverse_ratio: float = 0.0

    def choose(self, fields: Fields, setting: Setting, rng: np.random.Generator) -> dict[str, Any]:
        if self.reverse_ratio == 0.0 or rng.random() < self.reverse_ratio:
            return {"mode": "understanding"}
        return {"mode": "generation", "template_index": draw(rng, setting.phrases.requests_drawn)}

    def render(self, fields: Fields, choice: Choice, setting: Setting) -> Layout:
        image = codes_of(fields)
        if choice["mode"] == "understanding":
            question, answer = text_of(fields, "question").strip(), with_full_stop(text_of(fields, "answer").strip())
            return self.lay_out([Turn((image, question), (answer,))])
        phrases, index = setting.phrases, choice["template_index"]
        caption = text_of(fields, "answer" if "question" in fields else "text").strip().rstrip(".")
        request = f"{phrases.requests[index]} {caption}{phrases.closing_marks[index]}"
        return self.lay_out([Turn((request,), (phrases.replies[index], image))])


@dataclasses.dataclass(frozen=True)
class Edit(Chat):
    """Change an image. Fields: `source_image_ids`, `target_image_ids`, and `instruction`,

    or `instruction_gpt` with its `response`, which win over it. Texts are taken as they are.
    """

    def choose(self, fields: Fields, setting: Setting, rng: np.random.Generator) -> dict[str, Any]:
        drawn = setting.phrases.edit_replies_drawn
        return {"reply_index": None if "instruction_gpt" in fields else draw(rng, drawn)}

    def render(self, fields: Fields, choice: Choice, setting: Setting) -> Layout:
        if "instruction_gpt" in fields:
            instruction, reply = text_of(fields, "instruction_gpt"), text_of(fields, "response")
        else:
            instruction, reply = text_of(fields, "instruction"), setting.phrases.edit_replies[choice["reply_index"]]
        source, target = codes_of(fields, "source_image_ids"), codes_of(fields, "target_image_ids")
        return self.lay_out([Turn((source, instruction), (reply, target))])


@dataclasses.dataclass(frozen=True)
class EditMultiTurn(Chat):
    """Three edits one after the other. Fields: `image_ids` (4 images, flat), `instruction0` to `instruction2`."""

    def choose(self, fields: Fields, setting: Setting, rng: np.random.Generator) -> dict[str, Any]:
        return {"reply_index": draw(rng, setting.phrases.edit_replies_drawn)}

    def render(self, fields: Fields, choice: Choice, setting: Setting) -> Layout:
        source, *targets = setting.split(codes_of(fields), 4)
        reply = setting.phrases.edit_replies[choice["reply_index"]]
        instructions = [text_of(fields, f"instruction{number}") for number in range(3)]
        users = [(source, instructions[0]), *((text,) for text in instructions[1:])]
        return self.lay_out([Turn(user, (reply, image)) for user, image in zip(users, targets, strict=True)])


@dataclasses.dataclass(frozen=True)
class Difference(Chat):
    """A question about two images. Fields: `image_ids` (2 images, flat), `question`, `answer`.

    Attributes:
        whole_words: rename "image A" and the like only where they are names, not inside other words ("image above"),
            and without doubling the article. The original replaces letters wherever they stand.
    """

    whole_words: bool = False

    def choose(self, fields: Fields, setting: Setting, rng: np.random.Generator) -> dict[str, Any]:
        return {"layout": "image_then_sentence" if rng.random() < 0.5 else "sentence_then_image"}

    def render(self, fields: Fields, choice: Choice, setting: Setting) -> Layout:
        one, two = setting.split(codes_of(fields), 2)
        first, second = setting.phrases.sentences
        question = self._renamed(text_of(fields, "question"), setting).strip()
        answer = with_full_stop(self._renamed(text_of(fields, "answer"), setting).strip())
        if choice["layout"] == "image_then_sentence":
            user = (one, first, two, f"{second} {question}")
        else:
            user = (first, one, second, two, question)
        return self.lay_out([Turn(user, (answer,))])

    def _renamed(self, text: str, setting: Setting) -> str:
        names = dict(setting.phrases.names)
        if self.whole_words:
            return _NAME.sub(lambda match: _full_name(match, names), text)
        for name, full in names.items():
            text = text.replace(name, full)
        return text


_NAME = re.compile(r"\b([Tt]he )?([Ii]mage) ([AaBb])\b")


def _full_name(match: re.Match, names: dict[str, str]) -> str:
    article, noun, letter = match.groups()
    if article and letter == "a":  # "the image a man holds": an article, not a name
        return match[0]
    full = names[f"image {letter}"]
    return full[0].upper() + full[1:] if (article or noun)[0].isupper() else full


@dataclasses.dataclass(frozen=True)
class Story(Chat):
    """Five captions with images. Fields: `image_ids` (5 images, flat), `caption0` to `caption4`.

    Attributes:
        reverse_ratio: exactly 0.0: one image a turn; anything else: one request and the whole story in one reply.
    """

    reverse_ratio: float = 0.0

    def choose(self, fields: Fields, setting: Setting, rng: np.random.Generator) -> dict[str, Any]:
        if self.reverse_ratio == 0.0:
            return {"variant": "multi_turn"}
        return {"variant": "single_turn", "template_index": draw(rng, setting.phrases.story_drawn)}

    def render(self, fields: Fields, choice: Choice, setting: Setting) -> Layout:
        images, phrases = setting.split(codes_of(fields), 5), setting.phrases
        captions = [text_of(fields, f"caption{number}").strip() for number in range(5)]
        if choice["variant"] == "multi_turn":
            users = [(captions[0], images[0], captions[1] + phrases.next_request)]
            users += [(caption + phrases.next_request,) for caption in captions[2:]]
            turns = zip(users, images[1:], strict=True)
            return self.lay_out([Turn(user, (phrases.next_reply, image)) for user, image in turns])
        user = (captions[0], images[0], phrases.story_requests[choice["template_index"]])
        rest = zip(captions[1:], images[1:], strict=True)
        scenes = (part for caption, image in rest for part in (f"\n{caption}", image))
        return self.lay_out([Turn(user, (phrases.story_replies[choice["template_index"]], *scenes))])


def draw(rng: np.random.Generator, indices: tuple[int, ...]) -> int:
    return indices[int(rng.integers(len(indices)))]

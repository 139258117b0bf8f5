"""Instruction tasks: image generation, editing, stories, and single questions (spec D.4)."""

import dataclasses
import re
from typing import Any

import numpy as np

from seed_jax.data.templates.chat import Chat
from seed_jax.data.templates.dialogue import DialogueTurn
from seed_jax.data.templates.layout import (
    Fields,
    RandomChoices,
    RenderContext,
    SampleLayout,
    codes_of,
    text_of,
    with_full_stop,
)


@dataclasses.dataclass(frozen=True)
class Qa(Chat):
    """Visual question answering, or image generation from a caption.

    Fields: `image_ids`, `question`, `answer`; without a question the caption is in `text` (generation only).

    Attributes:
        reverse_ratio: 0.0 always answers; otherwise the probability of answering, so that -1.0 always generates.
    """

    reverse_ratio: float = 0.0

    def choose(self, fields: Fields, context: RenderContext, rng: np.random.Generator) -> dict[str, Any]:
        if self.reverse_ratio == 0.0 or rng.random() < self.reverse_ratio:
            return {"mode": "understanding"}
        return {"mode": "generation", "template_index": draw(rng, context.phrases.requests_drawn)}

    def render(self, fields: Fields, choice: RandomChoices, context: RenderContext) -> SampleLayout:
        image = codes_of(fields)
        if choice["mode"] == "understanding":
            question = text_of(fields, "question").strip()
            answer = with_full_stop(text_of(fields, "answer").strip())
            return self.lay_out([DialogueTurn((image, question), (answer,))])
        phrases = context.phrases
        index = choice["template_index"]
        caption = text_of(fields, "answer" if "question" in fields else "text").strip().rstrip(".")
        request = f"{phrases.requests[index]} {caption}{phrases.closing_marks[index]}"
        return self.lay_out([DialogueTurn((request,), (phrases.replies[index], image))])


@dataclasses.dataclass(frozen=True)
class Edit(Chat):
    """Image editing.

    Fields: `source_image_ids`, `target_image_ids`, and `instruction`, or `instruction_gpt` with its `response`, which
    take precedence. Texts are used verbatim.
    """

    def choose(self, fields: Fields, context: RenderContext, rng: np.random.Generator) -> dict[str, Any]:
        drawn = context.phrases.edit_replies_drawn
        return {"reply_index": None if "instruction_gpt" in fields else draw(rng, drawn)}

    def render(self, fields: Fields, choice: RandomChoices, context: RenderContext) -> SampleLayout:
        if "instruction_gpt" in fields:
            instruction = text_of(fields, "instruction_gpt")
            reply = text_of(fields, "response")
        else:
            instruction = text_of(fields, "instruction")
            reply = context.phrases.edit_replies[choice["reply_index"]]
        source = codes_of(fields, "source_image_ids")
        target = codes_of(fields, "target_image_ids")
        return self.lay_out([DialogueTurn((source, instruction), (reply, target))])


@dataclasses.dataclass(frozen=True)
class EditMultiTurn(Chat):
    """Three consecutive edits. Fields: `image_ids` (4 images, flat), `instruction0` to `instruction2`."""

    def choose(self, fields: Fields, context: RenderContext, rng: np.random.Generator) -> dict[str, Any]:
        return {"reply_index": draw(rng, context.phrases.edit_replies_drawn)}

    def render(self, fields: Fields, choice: RandomChoices, context: RenderContext) -> SampleLayout:
        source, *targets = context.split(codes_of(fields), 4)
        reply = context.phrases.edit_replies[choice["reply_index"]]
        instructions = [text_of(fields, f"instruction{number}") for number in range(3)]
        users = [(source, instructions[0]), *((text,) for text in instructions[1:])]
        return self.lay_out([DialogueTurn(user, (reply, image)) for user, image in zip(users, targets, strict=True)])


@dataclasses.dataclass(frozen=True)
class Difference(Chat):
    """A question about two images. Fields: `image_ids` (2 images, flat), `question`, `answer`.

    Attributes:
        whole_words: replace "image A" and its variants only where they are names, not inside other words ("image
            above"), and without doubling the article. The original replaces every occurrence of the characters.
    """

    whole_words: bool = False

    def choose(self, fields: Fields, context: RenderContext, rng: np.random.Generator) -> dict[str, Any]:
        return {"layout": "image_then_sentence" if rng.random() < 0.5 else "sentence_then_image"}

    def render(self, fields: Fields, choice: RandomChoices, context: RenderContext) -> SampleLayout:
        first_image, second_image = context.split(codes_of(fields), 2)
        first_sentence, second_sentence = context.phrases.sentences
        question = self._renamed(text_of(fields, "question"), context).strip()
        answer = with_full_stop(self._renamed(text_of(fields, "answer"), context).strip())
        if choice["layout"] == "image_then_sentence":
            user = (first_image, first_sentence, second_image, f"{second_sentence} {question}")
        else:
            user = (first_sentence, first_image, second_sentence, second_image, question)
        return self.lay_out([DialogueTurn(user, (answer,))])

    def _renamed(self, text: str, context: RenderContext) -> str:
        names = dict(context.phrases.names)
        if self.whole_words:
            return _NAME.sub(lambda match: _full_name(match, names), text)
        for name, full in names.items():
            text = text.replace(name, full)
        return text


_NAME = re.compile(r"\b([Tt]he )?([Ii]mage) ([AaBb])\b")


def _full_name(match: re.Match[str], names: dict[str, str]) -> str:
    article, noun, letter = match.groups()
    if article and letter == "a":  # "the image a man holds" contains an article, not a name
        return match[0]
    full = names[f"image {letter}"]
    return full[0].upper() + full[1:] if (article or noun)[0].isupper() else full


@dataclasses.dataclass(frozen=True)
class Story(Chat):
    """A story of five captioned images. Fields: `image_ids` (5 images, flat), `caption0` to `caption4`.

    Attributes:
        reverse_ratio: exactly 0.0: one image per turn; otherwise one request and the whole story in one reply.
    """

    reverse_ratio: float = 0.0

    def choose(self, fields: Fields, context: RenderContext, rng: np.random.Generator) -> dict[str, Any]:
        if self.reverse_ratio == 0.0:
            return {"variant": "multi_turn"}
        return {"variant": "single_turn", "template_index": draw(rng, context.phrases.story_drawn)}

    def render(self, fields: Fields, choice: RandomChoices, context: RenderContext) -> SampleLayout:
        images = context.split(codes_of(fields), 5)
        phrases = context.phrases
        captions = [text_of(fields, f"caption{number}").strip() for number in range(5)]
        if choice["variant"] == "multi_turn":
            users = [(captions[0], images[0], captions[1] + phrases.next_request)]
            users += [(caption + phrases.next_request,) for caption in captions[2:]]
            turns = zip(users, images[1:], strict=True)
            return self.lay_out([DialogueTurn(user, (phrases.next_reply, image)) for user, image in turns])
        user = (captions[0], images[0], phrases.story_requests[choice["template_index"]])
        rest = zip(captions[1:], images[1:], strict=True)
        scenes = (part for caption, image in rest for part in (f"\n{caption}", image))
        return self.lay_out([DialogueTurn(user, (phrases.story_replies[choice["template_index"]], *scenes))])


def draw(rng: np.random.Generator, indices: tuple[int, ...]) -> int:
    """Draw one of `indices` uniformly."""
    return indices[int(rng.integers(len(indices)))]

"""Conversations about images in LLaVA's format (LLaVA, SVIT, LLaVAR, LLaVA-CC3M, ShareGPT, ...).

`{"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", ...}]}`, or
`{"image": "a.jpg", "data": ["What is it?", "A dog."]}`; `image` may be a list, missing, or empty. `<image>` marks the
places of images and is removed; it must occur once per image. As in LLaVA, a first turn of the model is dropped. The
placeholder alone is a question. Tasks: sft.conversation (one image), sft.visual_question, sft.text_conversation (none).
"""

import re
from typing import Any

from seed_jax.data.sources.listed import Entry, ListSource, as_object, first_value, remaining_metadata
from seed_jax.data.sources.samples import InputFile, RawSample, SkipSampleError
from seed_jax.images import EXTENSIONS

_USER = ("human", "user", "question")
_MODEL = ("gpt", "assistant", "model", "answer", "bot", "chatgpt", "bing", "bard")
_SYSTEM = ("system",)
_PLACEHOLDER = re.compile(r"<(?:image|video)>")
# Placeholders at the beginning or end of a line; elsewhere "<image>" may be prose about HTML.
_AT_EDGE = re.compile(r"(?:^[^\S\n]*(?:<(?:image|video)>\s*)+)|(?:(?:\s*<(?:image|video)>)+[^\S\n]*$)", re.MULTILINE)


class LlavaSource(ListSource):
    """Read lists of conversations; one sample per conversation, its images before its first text."""

    kind = "llava"
    what = "lists of conversations"

    def sample(self, name: str, entry: Any, file: InputFile) -> RawSample:
        entry = as_object(entry)
        images = self._images(entry, file)
        texts = conversation_texts(turns_of(entry), len(images))
        meta = remaining_metadata(entry, ("conversations", "data", "image"))
        return RawSample(name, (*images, *texts), meta, blank_questions=bool(images))

    def _images(self, entry: Entry, file: InputFile) -> list[Any]:
        names = first_value(entry, ("image", "images", "image_id"))
        names = names if isinstance(names, list) else [] if names in (None, "") else [names]
        # A number, as in SVIT, is a file name without its extension.
        return [
            self.find_image(str(name), file, EXTENSIONS) if isinstance(name, int) else self.find_image(name, file)
            for name in names
        ]


def turns_of(entry: Entry) -> list[Any]:
    """Return the turns of an entry: texts, or objects with a role and a text."""
    data = entry.get("data")
    if isinstance(data, list) and data and all(isinstance(text, str) for text in data):
        return data
    turns = entry.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise SkipSampleError("no conversation", "expected turns under conversations or texts under data")
    return _flattened(turns)


def conversation_texts(turns: list[Any], num_images: int) -> list[str]:
    """Return the texts of user and model in turn, without placeholders.

    Args:
        turns: texts in turn, or objects with `from` and `value`, or `role` and `content`.
        num_images: images of the conversation, which the placeholders must match.

    Raises:
        SkipSampleError: the turns do not alternate, none is answered, an answer is blank, or placeholders and images
            differ in number.
    """
    texts: list[str] = []
    for number, turn in enumerate(turns):
        if isinstance(turn, str):
            texts.append(turn)
            continue
        role = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
        if role in _SYSTEM or (role in _MODEL and not texts and number == _first_turn(turns)):
            continue
        if role not in (_MODEL if len(texts) % 2 else _USER):
            raise SkipSampleError("turns do not alternate", f"turn {number} is from {role!r}"[:80])
        value = turn.get("value", turn.get("content"))
        if not isinstance(value, str):
            raise SkipSampleError("no conversation", f"turn {number} has no text")
        texts.append(value)
    if len(texts) < 2:
        raise SkipSampleError("no answer", f"{len(texts)} turns")
    questions = _without_placeholders(texts[::2], num_images)
    if any(
        not question and not _PLACEHOLDER.search(text) for question, text in zip(questions, texts[::2], strict=True)
    ):
        raise SkipSampleError("empty text", "a question is blank")
    answers = [text.strip() for text in texts[1::2]]
    if not all(answers):
        raise SkipSampleError("no answer", f"answer {answers.index('')} is blank")
    texts[::2] = questions
    texts[1::2] = answers
    return texts


def _first_turn(turns: list[Any]) -> int:
    """Return the number of the first turn that is not a system message."""
    roles = (turn.get("from", turn.get("role")) if isinstance(turn, dict) else None for turn in turns)
    return next((number for number, role in enumerate(roles) if role not in _SYSTEM), 0)


def _without_placeholders(questions: list[str], num_images: int) -> list[str]:
    """Remove the placeholders of the images from the user texts."""
    at_edge = sum(len(_PLACEHOLDER.findall(run)) for text in questions for run in _AT_EDGE.findall(text))
    everywhere = sum(len(_PLACEHOLDER.findall(text)) for text in questions)
    if num_images == 0 and at_edge:
        raise SkipSampleError("placeholder without an image", f"{at_edge} placeholders, no image")
    if num_images == 0 or everywhere == 0:
        return [text.strip() for text in questions]
    if at_edge == num_images:
        return [_AT_EDGE.sub("\n", text).strip() for text in questions]
    if everywhere == num_images:
        return [_PLACEHOLDER.sub("", text).strip() for text in questions]
    raise SkipSampleError("placeholders and images differ in number", f"{everywhere} placeholders, {num_images} images")


def _flattened(turns: list[Any]) -> list[Any]:
    """Join the conversations that SVIT nests as lists under `content`."""
    nested = [turn["content"] for turn in turns if isinstance(turn, dict) and isinstance(turn.get("content"), list)]
    return [turn for content in nested for turn in content] if nested else turns

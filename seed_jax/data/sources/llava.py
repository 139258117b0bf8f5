"""Conversations about images in LLaVA's format (LLaVA, SVIT, LLaVAR, LLaVA-CC3M, ...).

`{"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", ...}]}`, or
`{"image": "a.jpg", "data": ["What is it?", "A dog."]}`; `image` may be a list, or missing. Tasks: sft.conversation
(one image), sft.visual_question, sft.text_conversation (none).
"""

from typing import Any

from seed_jax.data.sources.image_lookup import EXTENSIONS
from seed_jax.data.sources.listed import Entry, ListSource, as_object, first_value, remaining_metadata
from seed_jax.data.sources.samples import InputFile, RawSample, SkipSampleError

_USER = ("human", "user", "question")
_MODEL = ("gpt", "assistant", "model", "answer")
_SYSTEM = ("system",)
_PLACEHOLDERS = ("<image>", "<video>")


class LlavaSource(ListSource):
    """Read lists of conversations; one sample per conversation, its images before its first text."""

    kind = "llava"
    what = "lists of conversations"

    def sample(self, name: str, entry: Any, file: InputFile) -> RawSample:
        entry = as_object(entry)
        turns = _turns(entry)
        meta = remaining_metadata(entry, ("conversations", "data", "image"))
        return RawSample(name, (*self._images(entry, file), *turns), meta)

    def _images(self, entry: Entry, file: InputFile) -> list[Any]:
        names = first_value(entry, ("image", "images", "image_id"))
        names = names if isinstance(names, list) else [] if names is None else [names]
        # A number, as in SVIT, is a file name without its extension.
        return [
            self.find_image(str(name), file, EXTENSIONS) if isinstance(name, int) else self.find_image(name, file)
            for name in names
        ]


def _turns(entry: Entry) -> list[str]:
    """Return the texts of user and model in turn."""
    data = entry.get("data")
    if isinstance(data, list) and data and all(isinstance(text, str) for text in data):
        return [_without_placeholder(text) for text in data]
    turns = entry.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise SkipSampleError("no conversation", "expected turns under conversations or texts under data")
    texts: list[str] = []
    for turn in _flattened(turns):
        role = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
        if role in _SYSTEM:
            continue
        if role not in (_MODEL if len(texts) % 2 else _USER):
            raise SkipSampleError("turns do not alternate", f"turn {len(texts)} is from {role!r}"[:80])
        value = turn.get("value", turn.get("content"))
        if not isinstance(value, str):
            raise SkipSampleError("no conversation", f"turn {len(texts)} has no text")
        texts.append(_without_placeholder(value))
    return texts


def _flattened(turns: list[Any]) -> list[Any]:
    """Join the conversations that SVIT nests as lists under `content`."""
    nested = [turn["content"] for turn in turns if isinstance(turn, dict) and isinstance(turn.get("content"), list)]
    return [turn for content in nested for turn in content] if nested else turns


def _without_placeholder(text: str) -> str:
    for placeholder in _PLACEHOLDERS:
        text = text.replace(placeholder, "")
    return text.strip()

"""Conversations about pictures as LLaVA writes them, and lists of that form (SVIT, LLaVAR, LLaVA-CC3M, ...).

`{"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", ...}]}`, or
`{"image": "a.jpg", "data": ["What is it?", "A dog."]}`; `image` may be a list, or missing. Tasks: sft.conversation
(one picture), sft.visual_question, sft.text_conversation (none).
"""

from typing import Any

from seed_jax.data.sources.listed import Entry, Listed, entry_of, first, rest
from seed_jax.data.sources.pictures_at import EXTENSIONS
from seed_jax.data.sources.units import InputFile, Raw, UnusableError

_USER, _MODEL, _SYSTEM = ("human", "user", "question"), ("gpt", "assistant", "model", "answer"), ("system",)
_PLACEHOLDERS = ("<image>", "<video>")


class LlavaSource(Listed):
    """Read lists of conversations; a work unit is a conversation, its pictures come before its first text."""

    kind = "llava"
    what = "lists of conversations"

    def unit(self, name: str, entry: Any, file: InputFile) -> Raw:
        entry = entry_of(entry)
        turns = _turns(entry)
        return Raw(name, (*self._pictures(entry, file), *turns), rest(entry, ("conversations", "data", "image")))

    def _pictures(self, entry: Entry, file: InputFile) -> list[Any]:
        names = first(entry, ("image", "images", "image_id"))
        names = names if isinstance(names, list) else [] if names is None else [names]
        # A number, as in SVIT, is a file name without its extension.
        return [
            self.picture(str(each), file, EXTENSIONS) if isinstance(each, int) else self.picture(each, file)
            for each in names
        ]


def _turns(entry: Entry) -> list[str]:
    """Return the texts of user and model in turn."""
    data = entry.get("data")
    if isinstance(data, list) and data and all(isinstance(each, str) for each in data):
        return [_without_placeholder(each) for each in data]
    turns = entry.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise UnusableError("no conversation", "expected turns under conversations or texts under data")
    texts = []
    for turn in _flat(turns):
        role = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
        if role in _SYSTEM:
            continue
        if role not in (_MODEL if len(texts) % 2 else _USER):
            raise UnusableError("turns do not alternate", f"turn {len(texts)} is from {role!r}"[:80])
        value = turn.get("value", turn.get("content"))
        if not isinstance(value, str):
            raise UnusableError("no conversation", f"turn {len(texts)} has no text")
        texts.append(_without_placeholder(value))
    return texts


def _flat(turns: list[Any]) -> list[Any]:
    """Join the conversations that SVIT keeps as lists under `content`."""
    nested = [turn["content"] for turn in turns if isinstance(turn, dict) and isinstance(turn.get("content"), list)]
    return [each for content in nested for each in content] if nested else turns


def _without_placeholder(text: str) -> str:
    for placeholder in _PLACEHOLDERS:
        text = text.replace(placeholder, "")
    return text.strip()

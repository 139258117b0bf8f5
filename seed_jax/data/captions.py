"""Captions as the tokenizer's training wants them (spec A.9)."""

import re

MAX_WORDS = 50
_DROPPED = re.compile(r"[.!\"()*#:;~]")


def clean(caption: str, max_words: int = MAX_WORDS) -> str:
    """Lower the case, turn most punctuation into spaces, collapse spaces, and keep the first words."""
    words = _DROPPED.sub(" ", caption.lower()).split()
    return " ".join(words[:max_words])

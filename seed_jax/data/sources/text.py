"""Plain text in JSON lines, as Wikipedia dumps are prepared: `{"title": ..., "text": "..."}`. Task: pretrain.text."""

from typing import Any

from seed_jax.data.sources.listed import Listed, entry_of, rest, text
from seed_jax.data.sources.units import InputFile, Raw


class TextSource(Listed):
    """Read lists with a `text`; a work unit is an entry, other keys are metadata."""

    kind = "text"
    what = "lists of texts"

    def unit(self, name: str, entry: Any, file: InputFile) -> Raw:
        entry = entry_of(entry)
        return Raw(name, (text(entry, ("text",), "text"),), rest(entry, ("text",)))

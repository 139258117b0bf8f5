"""Plain text in JSON lines, such as prepared Wikipedia dumps: `{"title": ..., "text": "..."}`. Task: pretrain.text.

The text is stored as it is; every other key is kept as metadata. Lists may be compressed (`.jsonl.gz`, `.jsonl.zip`) or
be one JSON array:

    {"title": "Colour", "text": "Colour is the visual perception of light."}
    {"title": "Shape", "text": "A shape is the form of an object."}
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seed_jax.data.sources.listed import ListSource, as_object, remaining_metadata, text_value
from seed_jax.data.sources.samples import InputFile, RawSample

TEXT_KEYS = ("text",)


class TextSource(ListSource):
    """Read lists of objects with a `text`; one sample per object.

    Blank texts are skipped and counted when the shards are built.
    """

    kind = "text"
    what = "lists of texts"

    def __init__(self, paths: Sequence[str | Path]):
        super().__init__(paths)

    def sample(self, name: str, entry: Any, file: InputFile) -> RawSample:
        entry = as_object(entry)
        return RawSample(name, (text_value(entry, TEXT_KEYS, "text"),), remaining_metadata(entry, TEXT_KEYS))

"""Differences of two pictures from MIMIC-IT (`CGD_instructions.json`). Task: sft.difference.

The pictures are those of `--images`: the `CGD.json` of base64 texts that comes with the instructions, a folder or tars.
"""

from collections.abc import Iterator
from typing import Any

from seed_jax.data.sources import json_stream
from seed_jax.data.sources.listed import Listed, Numbered, entry_of, rest, text
from seed_jax.data.sources.pictures_at import EXTENSIONS
from seed_jax.data.sources.units import InputFile, Raw, UnusableError

PICTURES = 2


class MimicItSource(Listed):
    """Read instruction files; a work unit is a question about two pictures."""

    kind = "mimicit"
    patterns = ("*_instructions*.json",)
    what = "MIMIC-IT instruction files"

    def entries(self, file: InputFile) -> Iterator[Numbered]:
        return enumerate(json_stream.members(file.path, "data"), 1)

    def unit(self, name: str, entry: Any, file: InputFile) -> Raw:
        key, content = entry
        content = entry_of(content)
        names = content.get("image_ids")
        if not isinstance(names, list) or len(names) != PICTURES:
            raise UnusableError("not a question about two pictures", f"image_ids is {names!r}"[:80])
        pictures = [self.picture(each, file, ("", *EXTENSIONS)) for each in names]
        question = text(content, ("instruction",), "question")
        answer = text(content, ("answer",), "answer")
        return Raw(name, (*pictures, question, answer), {"key": key, **rest(content, ("instruction", "answer"))})

"""COCO captions: `captions_train2017.json` with `images` and `annotations`, one sample with all captions a picture.

The pictures lie in `--images` (`train2017/`, or a tar). Tasks: pretrain.image_text_pair, sft.qa.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from seed_jax.data.sources import json_stream
from seed_jax.data.sources.listed import Listed, Numbered, entry_of, index_entries, rest, text
from seed_jax.data.sources.units import InputFile, Raw, UnusableError

_META = ("id", "license", "width", "height", "coco_url")


class CocoSource(Listed):
    """Read COCO caption files; a work unit is a picture. The captions alone, about 200 bytes each, are in memory."""

    kind = "coco"
    patterns = ("captions*.json",)
    what = "COCO caption files"

    def __init__(self, paths: Sequence[str | Path], *, images: str | Path | None = None):
        super().__init__(paths, images=images)
        self._captions = functools.lru_cache(maxsize=1)(_captions)

    def entries(self, file: InputFile) -> Iterator[Numbered]:
        return enumerate(json_stream.elements(file.path, "images"), 1)

    def unit(self, name: str, entry: Any, file: InputFile) -> Raw:
        entry = entry_of(entry)
        captions = self._captions(file.path).get(str(entry.get("id")))
        if not captions:
            raise UnusableError("no caption", f"no annotation for image_id {entry.get('id')!r}")
        picture = self.picture(text(entry, ("file_name",), "picture named"), file)
        return Raw(name, (picture, *captions), rest(entry, [key for key in entry if key not in _META]))


def _captions(path: Path) -> dict[str, list[str]]:
    """Return the captions of a file by picture."""
    found: dict[str, list[str]] = {}
    for each in index_entries(path, "annotations"):
        if isinstance(each.get("caption"), str):
            found.setdefault(str(each.get("image_id")), []).append(each["caption"].strip())
    return found

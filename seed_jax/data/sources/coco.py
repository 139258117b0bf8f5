"""COCO captions: `captions_train2017.json` with `images` and `annotations`; one sample per image with all its captions.

`--images` names the images (`train2017/`, or a tar). Tasks: pretrain.image_text_pair, sft.qa.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from seed_jax.data.sources import json_stream
from seed_jax.data.sources.listed import (
    ListSource,
    NumberedEntry,
    as_object,
    index_entries,
    remaining_metadata,
    text_value,
    without_blanks,
)
from seed_jax.data.sources.samples import InputFile, RawSample, SkipSampleError

_META = ("id", "license", "width", "height", "coco_url")


class CocoSource(ListSource):
    """Read COCO caption files; one sample per image. Only the captions, about 200 bytes each, are kept in memory."""

    kind = "coco"
    patterns = ("captions*.json",)
    what = "COCO caption files"

    def __init__(self, paths: Sequence[str | Path], *, images: str | Path | None = None):
        super().__init__(paths, images=images)
        self._captions = functools.lru_cache(maxsize=1)(_captions_by_image)

    def entries(self, file: InputFile) -> Iterator[NumberedEntry]:
        return enumerate(json_stream.elements(file.path, "images"), 1)

    def sample(self, name: str, entry: Any, file: InputFile) -> RawSample:
        entry = as_object(entry)
        captions = self._captions(file.path).get(str(entry.get("id")))
        if not captions:
            raise SkipSampleError("no caption", f"no annotation for image_id {entry.get('id')!r}")
        image = self.find_image(text_value(entry, ("file_name",), "image name"), file)
        meta = remaining_metadata(entry, [key for key in entry if key not in _META])
        return RawSample(name, (image, *without_blanks(captions)), meta)


def _captions_by_image(path: Path) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    for annotation in index_entries(path, "annotations"):
        if isinstance(annotation.get("caption"), str):
            captions.setdefault(str(annotation.get("image_id")), []).append(annotation["caption"].strip())
    return captions

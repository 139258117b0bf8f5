"""Differences between two images from MIMIC-IT (`CGD_instructions.json`). Task: sft.difference.

`--images` names the images: the `CGD.json` of base64 strings that comes with the instructions, a folder or tar files.
"""

from collections.abc import Iterator
from typing import Any

from seed_jax.data.sources import json_stream
from seed_jax.data.sources.listed import ListSource, NumberedEntry, as_object, remaining_metadata, text_value
from seed_jax.data.sources.samples import InputFile, RawSample, SkipSampleError
from seed_jax.images import EXTENSIONS

NUM_IMAGES = 2


class MimicItSource(ListSource):
    """Read instruction files; one sample per question about two images."""

    kind = "mimicit"
    patterns = ("*_instructions*.json",)
    what = "MIMIC-IT instruction files"

    def entries(self, file: InputFile) -> Iterator[NumberedEntry]:
        return enumerate(json_stream.members(file.path, "data"), 1)

    def sample(self, name: str, entry: Any, file: InputFile) -> RawSample:
        key, content = entry
        content = as_object(content)
        names = content.get("image_ids")
        if not isinstance(names, list) or len(names) != NUM_IMAGES:
            raise SkipSampleError("not a question about two images", f"image_ids is {names!r}"[:80])
        images = [self.find_image(image, file, ("", *EXTENSIONS)) for image in names]
        question = text_value(content, ("instruction",), "question")
        answer = text_value(content, ("answer",), "answer")
        meta = {"key": key, **remaining_metadata(content, ("instruction", "answer"))}
        return RawSample(name, (*images, question, answer), meta)

"""VIST stories (`train.story-in-sequence.json`): five images with a sentence each. Task: sft.story.

`--images` names the images, which have their Flickr numbers as names, with any usual extension.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from seed_jax.data.sources import json_stream
from seed_jax.data.sources.listed import ListSource, NumberedEntry, text_value
from seed_jax.data.sources.samples import InputFile, Item, RawSample, SkipSampleError
from seed_jax.images import EXTENSIONS

SCENES = 5


class VistSource(ListSource):
    """Read story-in-sequence files, in which the scenes of a story are consecutive; one sample per story."""

    kind = "vist"
    patterns = ("*story-in-sequence*.json",)
    what = "VIST stories"

    def entries(self, file: InputFile) -> Iterator[NumberedEntry]:
        scenes = (_scene(annotation) for annotation in json_stream.elements(file.path, "annotations"))
        stories = itertools.groupby(scenes, lambda scene: scene.get("story_id"))
        return enumerate((list(story) for _, story in stories), 1)

    def sample(self, name: str, entry: Any, file: InputFile) -> RawSample:
        if len(entry) != SCENES:
            raise SkipSampleError("not a story of five images", f"{len(entry)} scenes")
        scenes = sorted(entry, key=lambda scene: str(scene.get("worker_arranged_photo_order")))
        items: list[Item] = []
        for scene in scenes:
            image = self.find_image(text_value(scene, ("photo_flickr_id",), "image name"), file, EXTENSIONS)
            items += [text_value(scene, ("original_text", "text"), "caption"), image]
        meta = {"story_id": str(scenes[0].get("story_id")), "album_id": str(scenes[0].get("album_id"))}
        return RawSample(name, tuple(items), meta)


def _scene(content: Any) -> dict[str, Any]:
    """Unwrap a scene, which the files put in a list of one; anything else becomes a scene without a story."""
    content = content[0] if isinstance(content, list) and len(content) == 1 else content
    return content if isinstance(content, dict) else {}

"""VIST stories (`train.story-in-sequence.json`): five pictures with a sentence each. Task: sft.story.

The pictures lie in `--images` under their Flickr numbers, with any usual extension.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from seed_jax.data.sources import json_stream
from seed_jax.data.sources.listed import Listed, Numbered, text
from seed_jax.data.sources.pictures_at import EXTENSIONS
from seed_jax.data.sources.units import InputFile, Raw, UnusableError

SCENES = 5


class VistSource(Listed):
    """Read story-in-sequence files, in which the scenes of a story follow each other; a work unit is a story."""

    kind = "vist"
    patterns = ("*story-in-sequence*.json",)
    what = "VIST stories"

    def entries(self, file: InputFile) -> Iterator[Numbered]:
        scenes = (_scene(each) for each in json_stream.elements(file.path, "annotations"))
        stories = itertools.groupby(scenes, lambda scene: scene.get("story_id"))
        return enumerate((list(story) for _, story in stories), 1)

    def unit(self, name: str, entry: Any, file: InputFile) -> Raw:
        if len(entry) != SCENES:
            raise UnusableError("not a story of five pictures", f"{len(entry)} scenes")
        entry = sorted(entry, key=lambda scene: str(scene.get("worker_arranged_photo_order")))
        items = []
        for scene in entry:
            picture = self.picture(text(scene, ("photo_flickr_id",), "picture named"), file, EXTENSIONS)
            items += [text(scene, ("original_text", "text"), "caption"), picture]
        meta = {"story_id": str(entry[0].get("story_id")), "album_id": str(entry[0].get("album_id"))}
        return Raw(name, tuple(items), meta)


def _scene(content: Any) -> dict[str, Any]:
    """Return a scene, which the files wrap in a list of one; anything else is a scene without a story."""
    content = content[0] if isinstance(content, list) and len(content) == 1 else content
    return content if isinstance(content, dict) else {}

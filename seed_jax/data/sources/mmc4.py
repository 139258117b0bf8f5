"""MMC4 documents: JSON lines with `text_list` and `image_info`, images in tar files or a folder.

An image is placed before the text it matches. Images that were not downloaded are left out, and so are filtered ones;
a document without any image left is skipped. A tar named like its list (`docs_shard_0_v2.tar`) or a folder of tar
files of that name is used for that list only, which keeps the name table small. Task: pretrain.interleaved.
"""

import dataclasses
from pathlib import Path
from typing import Any

from seed_jax.data.sources.listed import Entry, ListSource, as_object, remaining_metadata
from seed_jax.data.sources.samples import InputFile, Item, RawSample, SkipSampleError
from seed_jax.files import is_file

_META = ("url", "could_have_url_duplicate")


@dataclasses.dataclass(frozen=True)
class _MatchedImage:
    """An available image, the number of the text it matches, and their similarity."""

    text_index: int
    image: Item
    similarity: float


class Mmc4Source(ListSource):
    """Read MMC4's lists, also as the released `.jsonl.zip`; one sample per document."""

    kind = "mmc4"
    patterns = ("*.jsonl", "*.jsonl.gz", "*.jsonl.zip")
    what = "MMC4 documents"

    def sample(self, name: str, entry: Any, file: InputFile) -> RawSample:
        entry = as_object(entry)
        texts = entry.get("text_list")
        images = entry.get("image_info")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise SkipSampleError("not a document", "text_list is not a list of texts")
        matched = self._matched_images(images if isinstance(images, list) else [], len(texts), file)
        if not matched:
            raise SkipSampleError("no image of the document is available", f"{len(images or ())} named")
        items: list[Item] = []
        for index, text in enumerate(texts):
            items += [match.image for match in matched if match.text_index == index]
            items += [text] if text.strip() else []
        meta = remaining_metadata(entry, [key for key in entry if key not in _META])
        similarities = tuple(match.similarity for match in matched)
        return RawSample(name, tuple(items), meta, document=True, similarities=similarities)

    def _matched_images(self, images: list[Any], num_texts: int, file: InputFile) -> list[_MatchedImage]:
        """Return the available images in the order of the texts they match."""
        matched = []
        for info in images:
            text_index = info.get("matched_text_index") if isinstance(info, dict) else None
            if type(text_index) is not int or not 0 <= text_index < num_texts:
                continue
            if (image := self._available(info, file)) is not None:
                similarity = info.get("matched_sim")
                similarity = float(similarity) if isinstance(similarity, int | float) else 1.0
                matched.append(_MatchedImage(text_index, image, similarity))
        return sorted(matched, key=lambda match: match.text_index)

    def _available(self, info: Entry, file: InputFile) -> Item | None:
        try:
            image = self.find_image(info.get("image_name"), file)
        except SkipSampleError:
            return None
        return image if not isinstance(image, Path) or is_file(image) else None

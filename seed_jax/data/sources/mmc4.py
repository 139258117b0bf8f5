"""MMC4 documents: JSON lines with `text_list` and `image_info`, pictures in tars or a folder.

A picture stands before the text it matches. Pictures that were not downloaded are left out, and so is what the filters
refuse; a document without any picture left is refused. A tar named like its list (`docs_shard_0_v2.tar`) or a folder
of tars of that name is used for that list alone, which keeps the table of names small. Task: pretrain.interleaved.
"""

from typing import Any

from seed_jax.data.sources.listed import Entry, Listed, entry_of, rest
from seed_jax.data.sources.units import InputFile, Raw, Slice, UnusableError

_META = ("url", "could_have_url_duplicate")


class Mmc4Source(Listed):
    """Read MMC4's lists, also as the released `.jsonl.zip`; a work unit is a document."""

    kind = "mmc4"
    patterns = ("*.jsonl", "*.jsonl.gz", "*.jsonl.zip")
    what = "MMC4 documents"

    def unit(self, name: str, entry: Any, file: InputFile) -> Raw:
        entry = entry_of(entry)
        texts, pictures = entry.get("text_list"), entry.get("image_info")
        if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
            raise UnusableError("not a document", "text_list is no list of texts")
        placed = self._placed(pictures if isinstance(pictures, list) else [], len(texts), file)
        if not placed:
            raise UnusableError("no picture of the document is there", f"{len(pictures or ())} named")
        items: list[Any] = []
        for place, each in enumerate(texts):
            items += [picture for index, picture, _ in placed if index == place]
            items += [each] if each.strip() else []
        meta = rest(entry, [key for key in entry if key not in _META])
        return Raw(name, tuple(items), meta, document=True, similarities=tuple(value for *_, value in placed))

    def _placed(self, pictures: list[Any], texts: int, file: InputFile) -> list[tuple[int, Any, float]]:
        """Return (number of the matching text, picture, similarity) of the pictures that are there, in that order."""
        found = []
        for info in pictures:
            place = info.get("matched_text_index") if isinstance(info, dict) else None
            if type(place) is not int or not 0 <= place < texts:
                continue
            if (picture := self._there(info, file)) is not None:
                similarity = info.get("matched_sim")
                found.append((place, picture, float(similarity) if isinstance(similarity, int | float) else 1.0))
        return sorted(found, key=lambda each: each[0])

    def _there(self, info: Entry, file: InputFile) -> Any:
        try:
            picture = self.picture(info.get("image_name"), file)
        except UnusableError:
            return None
        return picture if isinstance(picture, Slice) or picture.is_file() else None

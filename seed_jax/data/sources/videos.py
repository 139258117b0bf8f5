"""Videos with a caption, as WebVid lists them, or with a question and an answer (Video-ChatGPT, MSR-VTT, NExT-QA, ...).

Lists are tables or JSON. The keys: `contentUrl`, `videoid`, `video`, `video_id`, `video_name` or `vid` for the file,
with or without extension, below `page_dir` where there is one; `name` or `caption` for a caption; `question` or `q` and
`answer` or `a`. The videos lie in `--images`. `--frames` frames are taken, each from the middle of an equal stretch:
4 for WebVid, MSR-VTT and MSVD, 8 for Video-ChatGPT and NExT-QA. Tasks: pretrain.video_caption, sft.video_qa.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from seed_jax.data.sources.listed import Entry, Listed, Numbered, entry_of, first, list_entries, rest, text
from seed_jax.data.sources.units import Bad, InputFile, Item, Raw, UnusableError, Video, plain
from seed_jax.errors import UserError
from seed_jax.video import check_available

EXTENSIONS = ("", ".mp4", ".webm", ".mkv", ".avi", ".mov")
_NAME = ("video", "video_id", "videoid", "video_name", "vid")
_CAPTION, _QUESTION, _ANSWER = ("caption", "name", "text"), ("question", "q"), ("answer", "a")


class VideosSource(Listed):
    """Read lists of videos; a work unit is a caption or a question."""

    kind = "videos"
    patterns = ("*.csv", "*.tsv", "*.json", "*.jsonl", "*.csv.gz")
    what = "lists of videos"

    def __init__(self, paths: Sequence[str | Path], *, images: str | Path | None = None, frames: int = 4):
        super().__init__(paths, images=images)
        if frames < 1:
            raise UserError(f"--frames {frames} must be at least 1.")
        check_available()
        self.options = {"frames": frames}

    def entries(self, file: InputFile) -> Iterator[Numbered | Bad]:
        return list_entries(file.path)

    def unit(self, name: str, entry: Any, file: InputFile) -> Raw:
        entry = entry_of(entry)
        if first(entry, _QUESTION) is None:
            shown, meta = text(entry, _CAPTION, "caption"), rest(entry, _CAPTION)
        else:
            question, shown = text(entry, _QUESTION, "question"), text(entry, _ANSWER, "answer")
            meta = {"question": plain(question), **rest(entry, (*_QUESTION, *_ANSWER))}
        return Raw(name, (Video(self._video(entry, file), self.options["frames"]), shown), meta)

    def _video(self, entry: Entry, file: InputFile) -> Path:
        value = first(entry, _NAME)
        if not isinstance(value, str | int):
            raise UnusableError("no video named", f"expected one of {', '.join(_NAME)}")
        names = [str(value), *([f"video{value}"] if isinstance(value, int) else [])]  # MSR-VTT: 7 is video7.mp4
        folder = entry.get("page_dir")
        if isinstance(folder, str) and folder:
            names = [*(f"{folder}/{each}" for each in names), *names]
        for each in names:
            if (path := self._found(each, file)) is not None:
                return path
        raise UnusableError("missing video", os.fsencode(str(PurePosixPath(names[0]))).decode("utf-8", "replace"))

    def _found(self, name: str, file: InputFile) -> Path | None:
        try:
            place: Item = self.picture(name, file, EXTENSIONS)
        except UnusableError as error:
            if error.reason == "missing picture":
                return None
            raise
        if not isinstance(place, Path):
            raise UnusableError("video inside an archive", "unpack the videos into a folder")
        return place

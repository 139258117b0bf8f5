"""Videos with a caption (WebVid) or with a question and an answer (Video-ChatGPT, MSR-VTT, NExT-QA, ...).

Lists are tables or JSON. Keys: `contentUrl`, `videoid`, `video`, `video_id`, `video_name` or `vid` for the file, with
or without extension, below `page_dir` if there is one; `name` or `caption` for a caption; `question` or `q` and
`answer` or `a`. `--images` names the videos. `--frames` frames are taken, each from the middle of an equal interval: 4
for WebVid, MSR-VTT and MSVD, 8 for Video-ChatGPT and NExT-QA. Tasks: pretrain.video_caption, sft.video_qa.
"""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from seed_jax.data.sources.listed import (
    Entry,
    ListSource,
    as_object,
    first_value,
    remaining_metadata,
    text_value,
)
from seed_jax.data.sources.samples import InputFile, RawSample, SkipSampleError, Video, to_storable
from seed_jax.errors import UserError
from seed_jax.video import check_available

EXTENSIONS = ("", ".mp4", ".webm", ".mkv", ".avi", ".mov")
_NAME = ("video", "video_id", "videoid", "video_name", "vid")
_CAPTION = ("caption", "name", "text")
_QUESTION = ("question", "q")
_ANSWER = ("answer", "a")


class VideosSource(ListSource):
    """Read lists of videos; one sample per caption or question."""

    kind = "videos"
    patterns = ("*.csv", "*.tsv", "*.json", "*.jsonl", "*.csv.gz")
    what = "lists of videos"

    def __init__(self, paths: Sequence[str | Path], *, images: str | Path | None = None, frames: int = 4):
        super().__init__(paths, images=images)
        if frames < 1:
            raise UserError(f"--frames {frames} must be at least 1.")
        check_available()
        self.options = {"frames": frames}

    def sample(self, name: str, entry: Any, file: InputFile) -> RawSample:
        entry = as_object(entry)
        if first_value(entry, _QUESTION) is None:
            text = text_value(entry, _CAPTION, "caption")
            meta = remaining_metadata(entry, _CAPTION)
        else:
            question = text_value(entry, _QUESTION, "question")
            text = text_value(entry, _ANSWER, "answer")
            meta = {"question": to_storable(question), **remaining_metadata(entry, (*_QUESTION, *_ANSWER))}
        return RawSample(name, (Video(self._video(entry, file), self.options["frames"]), text), meta)

    def _video(self, entry: Entry, file: InputFile) -> Path:
        value = first_value(entry, _NAME)
        if not isinstance(value, str | int):
            raise SkipSampleError("no video name", f"expected one of {', '.join(_NAME)}")
        names = [str(value), *([f"video{value}"] if isinstance(value, int) else [])]  # MSR-VTT: 7 is video7.mp4
        folder = entry.get("page_dir")
        if isinstance(folder, str) and folder:
            names = [*(f"{folder}/{name}" for name in names), *names]
        for name in names:
            if (path := self._find_video(name, file)) is not None:
                return path
        raise SkipSampleError("missing video", os.fsencode(str(PurePosixPath(names[0]))).decode("utf-8", "replace"))

    def _find_video(self, name: str, file: InputFile) -> Path | None:
        try:
            location = self.find_image(name, file, EXTENSIONS)
        except SkipSampleError as error:
            if error.reason == "missing image":
                return None
            raise
        if not isinstance(location, Path):
            raise SkipSampleError("video inside an archive", "unpack the videos into a folder")
        return location

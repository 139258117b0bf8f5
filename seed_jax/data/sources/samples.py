"""Samples as a source yields them, and the helpers that all sources share."""

import base64
import binascii
import dataclasses
import fnmatch
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from seed_jax.errors import UserError
from seed_jax.files import check_regular, check_size, walk_files
from seed_jax.images import EXTENSIONS, MAX_FILE_BYTES


@dataclasses.dataclass(frozen=True)
class FileSlice:
    """An image or text inside a larger file: `size` bytes from `offset`, base64-encoded if `base64` is set."""

    path: Path
    offset: int
    size: int
    base64: bool = False

    def read_bytes(self, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        """Return the content.

        Raises:
            UserError: the slice is larger than `max_bytes`.
            OSError: the file is too short, or the slice is not base64.
        """
        check_size(self.size, max_bytes, f"a part of {self.path}")
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise OSError(f"{self.path} ends within a part that is to be read")
        try:
            return base64.b64decode(data, validate=True) if self.base64 else data
        except binascii.Error as error:
            raise OSError(f"a part of {self.path} is not base64 ({error})") from error


@dataclasses.dataclass(frozen=True)
class Video:
    """A video file and the number of frames to take, each from the middle of one of `frames` equal intervals."""

    path: Path
    frames: int


Item = str | bytes | Path | FileSlice | Video | np.ndarray
"""A text, an image (its bytes, file or file slice), a video, or existing codes (uint16 [32])."""


@dataclasses.dataclass(frozen=True, eq=False)
class RawSample:
    """An input sample: texts, images, videos and codes in reading order.

    Attributes:
        id: identifies the sample in its source; stable from build to build.
        items: the content.
        meta: metadata to be stored.
        document: unusable images are left out as long as one remains, instead of skipping the whole sample.
        blank_questions: texts alternate between user and model, and user texts may be blank (the image alone asks).
        similarities: of a document, image-text similarity per image, in the order of the images.
    """

    id: str
    items: tuple[Item, ...]
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    document: bool = False
    blank_questions: bool = False
    similarities: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class SkippedSample:
    """An unusable sample.

    Attributes:
        id: identifies the sample in its source.
        reason: one of a small set, for counting.
        detail: for the log.
        expected: the dataset itself says that the sample is missing, for example after a failed download. It is counted
            like filtered samples: it does not stop a build.
    """

    id: str
    reason: str
    detail: str = ""
    expected: bool = False


class SkipSampleError(Exception):
    """Raised by readers for an unusable sample; becomes a `SkippedSample`."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def skipped(self, sample_id: str) -> SkippedSample:
        """Return the sample that could not be used."""
        return SkippedSample(sample_id, self.reason, self.detail)


def failed_download(sample_id: str, meta: Mapping[str, Any]) -> SkippedSample | None:
    """Return the sample if its metadata, written by img2dataset, says that the image was not downloaded, else None."""
    if not str(meta.get("status", "")).startswith("failed"):
        return None
    return SkippedSample(sample_id, "image was not downloaded", str(meta.get("error_message") or ""), expected=True)


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A file of a source; `name` is independent of the location of the dataset."""

    path: Path
    name: str


@runtime_checkable
class Source(Protocol):
    """A foreign format. Its samples are numbered per file, in an order that never changes.

    Attributes:
        kind: name on the command line and in records.
        files: the input files, in order.
        options: reader options that change what is yielded, for the plan of a build.
    """

    kind: str
    files: tuple[InputFile, ...]
    options: dict[str, Any]

    def count(self, file: InputFile) -> int:
        """Return the number of samples of a file without reading its images."""
        ...

    def read(self, file: InputFile, start: int, stop: int) -> Iterator[RawSample | SkippedSample]:
        """Yield exactly the samples [start, stop) of a file, one in memory at a time."""
        ...


LOOSE_FILES_HINT = (
    "{folder} contains images with their captions beside them, such as img2dataset's output_format=files: pack them "
    "into a tar with `tar --sort=name -cf {folder}.tar -C {folder} .` and read it with --source webdataset."
)


def name_files(paths: Sequence[Path]) -> tuple[InputFile, ...]:
    """Name files by their paths relative to their common folder."""
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UserError(f"{twice} is given twice: name every file once.")
    absolute = [path.absolute() for path in paths]
    shared = Path(os.path.commonpath([path.parent for path in absolute]))
    return tuple(
        InputFile(path, full.relative_to(shared).as_posix()) for path, full in zip(paths, absolute, strict=True)
    )


def find_files(paths: Sequence[str | Path], patterns: Sequence[str], what: str) -> list[Path]:
    """Expand folders to the files below them that match `patterns`, sorted; keep files as given.

    Symbolic links to folders are followed; hidden files and folders are not read.

    Args:
        paths: files and folders.
        patterns: glob patterns for files in folders.
        what: description of the expected files, for error messages.

    Raises:
        UserError: a path does not exist, is a FIFO or device, or a folder holds no such file.
    """
    files = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path} does not exist: expected {what}.")
        inside = _matching_files(path, patterns) if path.is_dir() else [path]
        for file in inside:
            check_regular(file)
        if not inside:
            message = f"{path} contains no {what}: expected files named {' or '.join(patterns)}."
            raise UserError(f"{message} {loose_files_hint(path)}".rstrip())
        files += inside
    return files


def _matching_files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    files = walk_files(folder)
    return sorted(path for path in files if any(fnmatch.fnmatchcase(path.name, pattern) for pattern in patterns))


def loose_files_hint(folder: Path) -> str:
    """Return how to read a folder of images that have their captions beside them, or nothing for other folders."""
    images = (file for file in folder.glob("*/*") if file.suffix.lower() in EXTENSIONS)
    images = itertools.chain((file for file in folder.glob("*") if file.suffix.lower() in EXTENSIONS), images)
    image = next(images, None)
    if image is None or not has_caption_beside(image):
        return ""
    return LOOSE_FILES_HINT.format(folder=image.parent)


def has_caption_beside(image: Path) -> bool:
    """Whether an image has a .txt or .json file of the same name beside it, as in img2dataset's `files` output."""
    return any(image.with_suffix(extension).is_file() for extension in (".txt", ".json"))


def text_problem(text: str) -> str | None:
    """Return why a text cannot be stored (blank, invalid Unicode, control characters), or None."""
    if not text.strip():
        return "empty text"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "text is not Unicode"
    if any((character < " " and character not in "\t\n\r") or character == "\x7f" for character in text):
        return "control characters in text"
    return None


def to_storable(value: Any) -> Any:
    """Make JSON data storable in a record: replace invalid Unicode, turn integers beyond 64 bits into text."""
    if isinstance(value, dict):
        return {to_storable(key): to_storable(element) for key, element in value.items()}
    if isinstance(value, list):
        return [to_storable(element) for element in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    return str(value) if isinstance(value, int) and not -(2**63) <= value < 2**63 else value

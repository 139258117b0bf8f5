r"""Conversations as files: messages as JSON, their images as PNG files beside it or in one ZIP archive.

    {"kind": "conversation", "format": 1, "style": "vicuna", "messages": [
        {"role": "user", "segments": [{"type": "image", "codes": [...], "file": "chat_1_1.png"},
                                      {"type": "text", "text": "Draw it at night."}]},
        {"role": "assistant", "segments": [...], "seed": 7, "finish_reason": "eos"}]}

The codes are what a model reads; the files are for people, and a conversation can be read without them.
"""

import dataclasses
import functools
import io
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from seed_jax import images
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from seed_jax.files import atomic_path, reserve_numbered, write_json
from seed_jax.inference.chat.prompts import ASSISTANT, USER, Message
from seed_jax.inference.generation.segments import ImageSegment, Segment, TextSegment

KIND, FORMAT = "conversation", 1
ARCHIVED = "conversation.json"  # name of the messages in an archive
MAX_FILE_BYTES = 64 * 1024**2  # of the messages
MAX_IMAGE_SIDE = 1024  # of images that a user attaches, as they are kept
REMEDY = "choose a file that `/save`, the chat's --out or the chat page wrote"


@dataclasses.dataclass(frozen=True)
class RecordedMessage(Message):
    """A message with what a conversation shows and repeats.

    Attributes:
        images: the images of its `ImageSegment`s in order, None where only the codes are known.
        seed: of an answer: the seed of sampling and drawing.
        finish_reason: of an answer: see `Generation`.
    """

    images: tuple[Image.Image | None, ...] = ()
    seed: int | None = None
    finish_reason: str | None = None


@dataclasses.dataclass(frozen=True)
class Transcript:
    """A conversation that can be stored.

    Attributes:
        messages: alternating messages of user and assistant.
        style: prompt style of the model that answered.
    """

    messages: tuple[RecordedMessage, ...]
    style: str

    def to_dict(self, name_of: Callable[[Image.Image], str]) -> dict[str, Any]:
        """Return the conversation as a JSON object.

        Args:
            name_of: returns the name of an image's file.
        """
        messages = []
        for message in self.messages:
            segments, rest = [segment.to_dict() for segment in message.segments], iter(message.images)
            for segment in segments:
                image = next(rest, None) if segment["type"] == "image" else None
                segment.update({} if image is None else {"file": name_of(image)})
            extra = {"seed": message.seed, "finish_reason": message.finish_reason}
            known = {name: value for name, value in extra.items() if value is not None}
            messages.append({"role": message.role, "segments": segments, **known})
        return {"kind": KIND, "format": FORMAT, "style": self.style, "messages": messages}

    def to_zip(self) -> bytes:
        """Return an archive with `conversation.json` and the images."""
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            count = 0

            def add(image: Image.Image) -> str:
                nonlocal count
                count += 1
                png = io.BytesIO()
                image.save(png, format="PNG")
                archive.writestr(name := f"image_{count}.png", png.getvalue())
                return name

            archive.writestr(ARCHIVED, json.dumps(self.to_dict(add), indent=1, ensure_ascii=False))
        return content.getvalue()

    @classmethod
    def load(cls, path: Path, vocabulary: Vocabulary) -> "Transcript":
        """Read the JSON file of a conversation with the images beside it, or an archive.

        Args:
            path: the file.
            vocabulary: of the model that continues the conversation.

        Raises:
            UserError: the file is no conversation, or its images do not fit the vocabulary.
        """
        try:
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    return cls._parse(functools.partial(_read_member, archive), ARCHIVED, path, vocabulary)
            return cls._parse(functools.partial(_read_sibling, path.parent), path.name, path, vocabulary)
        except OSError as error:
            raise UserError(f"Cannot read {path}: {error.strerror or error}; {REMEDY}.") from error
        except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError) as error:  # damaged, encrypted, ...
            raise UserError(f"Cannot read {path}: not an archive of a conversation ({error}); {REMEDY}.") from error

    @classmethod
    def _parse(cls, read: Callable[[str, int], bytes], name: str, path: Path, vocabulary: Vocabulary) -> "Transcript":
        try:
            content = json.loads(read(name, MAX_FILE_BYTES))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not valid JSON ({error}): {REMEDY}.") from error
        if not isinstance(content, dict) or content.get("kind") != KIND or content.get("format") != FORMAT:
            raise UserError(f'{path} is not a conversation of format {FORMAT} ("kind": "{KIND}"): {REMEDY}.')
        messages, style = content.get("messages"), content.get("style")
        if not isinstance(messages, list) or len(messages) % 2 or not isinstance(style, str):
            raise UserError(f'{path}: expected a "style" and "messages" in pairs of question and answer; {REMEDY}.')
        parsed = []
        for number, message in enumerate(messages, 1):
            role = (USER, ASSISTANT)[(number - 1) % 2]
            parsed.append(_parse_message(message, role, vocabulary, read, f"{path}, message {number}"))
        return cls(tuple(parsed), style)


class TranscriptFile:
    """The JSON file and the images of one running conversation; files of other conversations are never replaced.

    Example:
        file = TranscriptFile.create(Path("chats"))
        file.write(Transcript(messages, style))  # again after every answer

    Args:
        path: the JSON file; images are written beside it as `<stem>_<number>.png`.
    """

    def __init__(self, path: Path):
        self.path = path
        self._stamp: tuple[int, ...] | None = None  # of the file as this object wrote it
        self._names: dict[int, tuple[Image.Image, str]] = {}  # by identity; the reference keeps the identity valid

    @classmethod
    def create(cls, folder: Path) -> "TranscriptFile":
        """Reserve the next unused `chat_<number>.json` of a directory."""
        folder.mkdir(parents=True, exist_ok=True)
        file = cls(reserve_numbered(folder, "chat", ".json"))
        file._stamp = _stamp(file.path)
        return file

    @property
    def is_own(self) -> bool:
        """Whether the file is missing, or as this object left it."""
        return _stamp(self.path) in (None, self._stamp)

    def add_image(self, image: Image.Image) -> Path:
        """Write an image beside the file, unless it has been written; return its path."""
        if id(image) not in self._names:
            path = reserve_numbered(self.path.parent, self.path.stem, ".png")
            try:
                with atomic_path(path) as temporary:
                    image.save(temporary, format="PNG")
            except BaseException:
                path.unlink(missing_ok=True)  # the reserved, empty file
                raise
            self._names[id(image)] = image, path.name
        return self.path.with_name(self._names[id(image)][1])

    def write(self, transcript: Transcript) -> None:
        """Write the conversation.

        Raises:
            UserError: the path cannot be written, or holds a file of something else.
        """
        if self.path.is_dir() or not self.path.name:
            raise UserError(f"{self.path} is a directory: give the name of a file, such as {self.path / 'chat.json'}.")
        if not self.path.parent.is_dir():
            raise UserError(f"The directory of {self.path} does not exist: create {self.path.parent}.")
        if not self.is_own:
            raise UserError(f"{self.path} exists and is not the file of this conversation: choose another name.")
        try:
            write_json(self.path, transcript.to_dict(lambda image: self.add_image(image).name), indent=1)
        except OSError as error:
            raise UserError(f"Cannot write {self.path}: {error.strerror or error}; choose another place.") from error
        self._stamp = _stamp(self.path)

    def continue_from(self, transcript: Transcript) -> None:
        """Let the file, which `transcript` was read from, follow the conversation from now on."""
        self._stamp = _stamp(self.path)
        stored = json.loads(self.path.read_bytes())["messages"]
        for message, saved in zip(transcript.messages, stored, strict=True):
            names = [segment.get("file") for segment in saved["segments"] if segment["type"] == "image"]
            for image, name in zip(message.images, names, strict=True):
                if image is not None:
                    self._names[id(image)] = image, name


def as_attachment(image: images.ImageInput) -> Image.Image:
    """Return a copy of a user's image that is small enough to be kept in a conversation."""
    copy = images.load(image).copy()
    copy.thumbnail((MAX_IMAGE_SIDE, MAX_IMAGE_SIDE))
    return copy


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _read_sibling(folder: Path, name: str, limit: int) -> bytes:
    path = folder / name
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UserError(f"{path} has more than {limit:,} bytes: {REMEDY}.")
    return content


def _read_member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    with archive.open(name) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UserError(f"{archive.filename}: {name} has more than {limit:,} bytes; {REMEDY}.")
    return content


def _parse_message(
    message: Any, role: str, vocabulary: Vocabulary, read: Callable[[str, int], bytes], where: str
) -> RecordedMessage:
    if not isinstance(message, dict) or message.get("role") != role or not isinstance(message.get("segments"), list):
        raise UserError(f'{where}: expected the "role" {role!r} and "segments"; {REMEDY}.')
    seed, finish_reason = message.get("seed"), message.get("finish_reason")
    segments = [_parse_segment(segment, vocabulary, where) for segment in message["segments"]]
    images = [
        _read_image(stored.get("file"), read)
        for stored, segment in zip(message["segments"], segments, strict=True)
        if isinstance(segment, ImageSegment)
    ]
    return RecordedMessage(
        role,
        tuple(segments),
        tuple(images),
        seed if isinstance(seed, int) else None,
        finish_reason if isinstance(finish_reason, str) else None,
    )


def _parse_segment(segment: Any, vocabulary: Vocabulary, where: str) -> Segment:
    if isinstance(segment, dict) and segment.get("type") == "text" and isinstance(segment.get("text"), str):
        return TextSegment(segment["text"])
    codes = segment.get("codes") if isinstance(segment, dict) and segment.get("type") == "image" else None
    if not isinstance(codes, Sequence) or not all(type(code) is int for code in codes):
        raise UserError(f'{where}: a segment is neither {{"type": "text", "text"}} nor {{"type": "image", "codes"}}.')
    count, limit = vocabulary.codes_per_image, vocabulary.num_codes
    if len(codes) != count or not all(0 <= code < limit for code in codes):
        raise UserError(
            f"{where}: an image has {len(codes)} codes, expected {count} from 0 to {limit - 1}: load the conversation "
            "with the model that it was saved with."
        )
    return ImageSegment(tuple(codes))


def _read_image(name: Any, read: Callable[[str, int], bytes]) -> Image.Image | None:
    """Return the image of that name; None if there is none, so that a conversation outlives its files."""
    # A name only: a file from elsewhere must not make the chat read, show and copy other files of this machine.
    if not isinstance(name, str) or os.path.basename(name) != name or not name.endswith(".png"):  # noqa: PTH119
        return None
    try:
        return images.load(read(name, images.MAX_FILE_BYTES), name)
    except (OSError, KeyError, UserError):
        return None

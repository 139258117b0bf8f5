"""Look up the images of a list by name: in a folder, in tar files, or in a JSON file of base64 strings."""

import base64
import binascii
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from seed_jax.data.sources.samples import FileSlice, SkipSampleError
from seed_jax.data.sources.tar_index import TarIndex
from seed_jax.errors import UserError
from seed_jax.files import is_file, is_path
from seed_jax.images import EXTENSIONS, MAX_FILE_BYTES

_BASE64_PAIR = re.compile(rb'"((?:[^"\\]|\\.){1,500})"\s*:\s*"([A-Za-z0-9+/=]*)"')
_WINDOW = 1 << 22
_DATA_URI = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
_MIN_INLINE_LENGTH = 60  # characters; shorter text is not an encoded image
# First bytes of image files: JPEG, PNG, GIF, RIFF (WebP), BMP (with its header size), TIFF, AVIF, JPEG 2000.
_SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|RIFF....WEBP|BM.{13}\0\0\0|II\*\0|MM\0\*|....ftypavi|\0\0\0\x0cjP", re.DOTALL
)


class ImageLookup:
    """Find images by the names that a list gives them.

    Args:
        location: a folder of images or tar files, a tar file, or a JSON file `{name: base64}`; None: the folder of
            each list.
    """

    def __init__(self, location: str | Path | None):
        self.location = None if location is None else Path(location)
        if self.location is not None and not self.location.exists():
            raise UserError(f"--images {location} does not exist: expected a folder of images or tar files.")
        # Keep only the last table in memory, also if several lists share it.
        self._build_index = functools.lru_cache(maxsize=1)(_build_index)
        self._table = functools.lru_cache(maxsize=1)(self._table_of)

    def find(self, name: Any, list_file: Path, extensions: Sequence[str] = ("",)) -> Path | FileSlice:
        """Return the location of an image.

        Args:
            name: file name or path of the image in the list.
            list_file: the file that contains the name.
            extensions: extensions to try after the name; with a single one, a file in a folder need not exist yet.

        Raises:
            SkipSampleError: the name is invalid, a URL, or outside the folder, or the image is missing.
        """
        if not isinstance(name, str) or not name or not is_path(name):
            raise SkipSampleError("no image name", repr(name)[:80])
        if name.startswith(("http://", "https://")):
            raise SkipSampleError("image is not downloaded", name)
        table = self._table(list_file)
        if table is None:
            return _file(self.location or list_file.parent, name, extensions)
        for extension in extensions:
            if (location := table.find(name + extension)) is not None:
                return location
        raise SkipSampleError("missing image", name)

    def _table_of(self, list_file: Path) -> "TarIndex | Base64Table | None":
        """Return the name table for a list, or None if its images are files of their own."""
        if self.location is None:
            return None
        if self.location.is_file() and self.location.suffix not in (".json", ".tar"):
            raise UserError(f"--images {self.location} is not a folder, a .tar or a .json of base64 images.")
        files = tuple(tars_of_list(self.location, list_file))
        return self._build_index(files) if files else None


def inline_image(value: str) -> bytes | None:
    """Return the image in a base64 string or data URI, or None for any other text."""
    uri = _DATA_URI.match(value[:100])
    if uri is None and (len(value) < _MIN_INLINE_LENGTH or " " in value[:_MIN_INLINE_LENGTH]):
        return None
    try:
        data = base64.b64decode("".join(value[uri.end() if uri else 0 :].split()), validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if is_image_file(data) else None


def is_image_file(data: bytes) -> bool:
    """Whether bytes begin like an image file; texts such as "BMW" do not."""
    return _SIGNATURE.match(data) is not None


def is_image_name(text: str) -> bool:
    """Whether a text looks like the path or URL of an image: one word that ends with an image extension."""
    return len(text) < 1000 and len(text.split()) == 1 and text.lower().partition("?")[0].endswith(EXTENSIONS)


def _file(folder: Path, name: str, extensions: Sequence[str]) -> Path:
    if ".." in Path(name).parts or not (folder / name).absolute().is_relative_to(folder.absolute()):
        raise SkipSampleError("unsafe image name", name)
    if len(extensions) == 1:
        return folder / (name + extensions[0])
    for extension in extensions:
        if is_file(path := folder / (name + extension)):
            return path
    raise SkipSampleError("missing image", name)


def tars_of_list(location: Path, list_file: Path) -> list[Path]:
    """Return the tar files (or the JSON file) for a list: those named like the list if there are any, otherwise all."""
    if location.is_file():
        return [location]
    stem = list_file.name.partition(".")[0]
    if (location / f"{stem}.tar").is_file():
        return [location / f"{stem}.tar"]
    folder = location / stem if any(_visible_tars(location / stem)) else location
    return sorted(_visible_tars(folder))


def _visible_tars(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob("*.tar") if not path.name.startswith("."))


def _build_index(files: tuple[Path, ...]) -> "TarIndex | Base64Table":
    return Base64Table(files[0]) if files[0].suffix == ".json" else TarIndex(files)


class Base64Table:
    """Offsets of the images in a JSON file `{"name": "base64 of an image", ...}`."""

    def __init__(self, path: Path):
        self.path = path
        self._slices = {name: (offset, size) for name, offset, size in _base64_slices(path)}

    def find(self, name: str) -> FileSlice | None:
        """Return the location of an image, or None."""
        offset_and_size = self._slices.get(name)
        return None if offset_and_size is None else FileSlice(self.path, *offset_and_size, base64=True)


def _base64_slices(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield (name, offset, size) of every image, scanning the file in windows."""
    with path.open("rb") as file:
        start = 0
        window = b""
        while chunk := file.read(max(_WINDOW, len(window))):
            window += chunk
            end = 0
            for match in _BASE64_PAIR.finditer(window):
                yield match[1].decode("utf-8", "replace"), start + match.start(2), len(match[2])
                end = match.end()
            # A pair that crosses the end of the window is matched together with the next chunk.
            start += end
            window = window[end:]
            if len(window) > MAX_FILE_BYTES:
                raise UserError(f"{path} is not a JSON object of names and base64 strings: see byte {start}.")

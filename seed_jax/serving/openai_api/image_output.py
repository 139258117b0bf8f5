"""Images of answers: encoded as data URIs, or as files that the server serves for a while."""

import asyncio
import base64
import dataclasses
import io
import re
import secrets
import time
from pathlib import Path

from PIL import Image

from seed_jax.files import write_bytes

MIB = 2**20
_NAME = re.compile(r"[\w-]{32}\.(png|webp|jpeg)")


@dataclasses.dataclass(frozen=True)
class ImageFormat:
    """How an image is encoded.

    Attributes:
        name: "png", "webp" or "jpeg".
        quality: 1 to 100, of WebP and JPEG.
    """

    name: str = "png"
    quality: int = 90

    def encode(self, image: Image.Image) -> bytes:
        """Return the encoded image."""
        buffer = io.BytesIO()
        options = {} if self.name == "png" else {"quality": self.quality}
        image.save(buffer, format=self.name.upper(), **options)
        return buffer.getvalue()


class MediaStore:
    """Files of images under unguessable names, deleted when they expire or when there are too many.

    Args:
        directory: of the files; created if missing.
        expiry_s: age at which a file is deleted.
        max_bytes: of all files together; the oldest are deleted.
    """

    def __init__(self, directory: Path, *, expiry_s: float = 3600.0, max_bytes: int = 1024 * MIB):
        self.directory = directory
        self._expiry_s = expiry_s
        self._max_bytes = max_bytes
        directory.mkdir(parents=True, exist_ok=True)

    def add(self, data: bytes, suffix: str) -> str:
        """Write a file and return its name."""
        name = f"{secrets.token_urlsafe(24)}.{suffix}"
        write_bytes(self.directory / name, data)
        self.prune()
        return name

    def find(self, name: str) -> Path | None:
        """Return the path of a file that `add` has written and that has not expired."""
        path = self.directory / name
        if not _NAME.fullmatch(name) or not path.is_file() or path.is_symlink():
            return None
        return path if time.time() - path.stat().st_mtime <= self._expiry_s else None

    def prune(self) -> None:
        """Delete what has expired, and the oldest files beyond the limit; other files are left alone."""
        total = 0
        for age, size, path in sorted(self._files()):
            total += size
            if age > self._expiry_s or total > self._max_bytes:
                path.unlink(missing_ok=True)

    def _files(self) -> list[tuple[float, int, Path]]:
        now, files = time.time(), []
        for path in self.directory.iterdir():
            if _NAME.fullmatch(path.name):
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                files.append((now - status.st_mtime, status.st_size, path))
        return files


@dataclasses.dataclass(frozen=True)
class OutputImage:
    """An image as bytes, and how a client receives it.

    Attributes:
        data: encoded image.
        format: "png", "webp" or "jpeg".
        size: "WIDTHxHEIGHT".
        file_url: URL of a file; None: a data URI.
    """

    data: bytes
    format: str
    size: str
    file_url: str | None = None

    @property
    def base64(self) -> str:
        return base64.b64encode(self.data).decode()

    @property
    def url(self) -> str:
        """Return the data URI, or the URL of the file."""
        return self.file_url or f"data:image/{self.format};base64,{self.base64}"


@dataclasses.dataclass(frozen=True)
class ImageWriter:
    """Encodes the images of answers in worker threads.

    Attributes:
        store: where files are written; None: images are data URIs.
        base_url: of the server, for the URLs of files.
    """

    store: MediaStore | None = None
    base_url: str = ""

    async def write(self, image: Image.Image, image_format: ImageFormat, *, as_file: bool) -> OutputImage:
        """Encode an image; with a store, and if `as_file`, its URL names a file."""
        return await asyncio.to_thread(self._write, image, image_format, as_file)

    def _write(self, image: Image.Image, image_format: ImageFormat, as_file: bool) -> OutputImage:
        data = image_format.encode(image)
        url = None
        if self.store is not None and as_file:
            url = f"{self.base_url.rstrip('/')}/media/{self.store.add(data, image_format.name)}"
        return OutputImage(data, image_format.name, f"{image.width}x{image.height}", url)

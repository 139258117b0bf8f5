"""Pictures that are read late, in the threads that decode them: stretches of larger files, and videos."""

import base64
import binascii
import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Slice:
    """A picture inside a larger file: `size` bytes from `offset`, perhaps written in base64."""

    path: Path
    offset: int
    size: int
    base64: bool = False

    def read_bytes(self) -> bytes:
        """Return the picture's bytes; OSError where they are not there any more, or not base64."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise OSError(f"{self.path} ends within a picture")
        try:
            return base64.b64decode(data, validate=True) if self.base64 else data
        except binascii.Error as error:
            raise OSError(f"a picture in {self.path} is not base64 ({error})") from error


@dataclasses.dataclass(frozen=True)
class Video:
    """A video file of which `frames` frames are used, each from the middle of an equal stretch."""

    path: Path
    frames: int

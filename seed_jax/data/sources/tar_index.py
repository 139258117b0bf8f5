"""Index of the files in tar archives, by name or by the URL they were downloaded from."""

import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from seed_jax.data.sources.samples import FileSlice
from seed_jax.errors import UserError
from seed_jax.files import MAX_TEXT_BYTES, check_regular, parse_json
from seed_jax.images import EXTENSIONS, MAX_FILE_BYTES

# What reading may raise in the middle of an archive; RecursionError: headers that extend each other without end.
TAR_DAMAGE = (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, ValueError, OverflowError, RecursionError)
_MAX_HEADER_BYTES = 2**20  # of the long name or the attributes of a member
_EXTENDED_HEADERS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)

_Location = tuple[int, int, int]
"""Number of the tar, offset and size in bytes."""


class TarIndex:
    """Looks up files of uncompressed tar archives by name.

    A name with folders matches a member with exactly this path, or else the only member whose path ends with it; the
    name of a tar without its extension counts as a folder (`train2017/1.jpg` in `train2017.tar`). A bare name matches
    the only member of that name. A file of the same name in another folder is never taken for the one that is missing.

    Needs about 500 bytes of memory per image. Links, devices and names that lead outside the archive are not indexed.
    """

    def __init__(self, tars: Sequence[Path]):
        self._tars = list(tars)
        self._members: dict[str, list[tuple[str, _Location]]] = {}
        for number, tar in enumerate(self._tars):
            for member in plain_files(tar):
                path = member.name.removeprefix("./")
                location = (number, member.offset_data, member.size)
                self._members.setdefault(PurePosixPath(path).name, []).append((path, location))

    def find(self, name: str) -> FileSlice | None:
        """Return the location of a file, or None if it is missing or the name is ambiguous."""
        name = name.removeprefix("./")
        candidates = self._members.get(PurePosixPath(name).name, [])
        matches = [location for path, location in candidates if path == name][:1]
        if not matches:
            matches = [
                location
                for path, location in candidates
                if f"/{self._tars[location[0]].stem}/{path}".endswith(f"/{name}")
            ]
        if len(matches) != 1:
            return None
        number, offset, size = matches[0]
        return FileSlice(self._tars[number], offset, size)


class UrlIndex:
    """Looks up images in tar files of img2dataset by the `url` in the JSON file beside each image."""

    def __init__(self, tars: Sequence[Path]):
        self._tars = list(tars)
        self._locations: dict[bytes, _Location] = {}
        for number, tar in enumerate(self._tars):
            images: dict[str, _Location] = {}
            urls: dict[str, str] = {}
            for member in plain_files(tar):
                path = PurePosixPath(member.name)
                if path.suffix.lower() in EXTENSIONS:
                    images[path.stem] = (number, member.offset_data, member.size)
                elif path.suffix == ".json" and (url := _url(tar, member)):
                    urls[path.stem] = url
            self._locations |= {_digest(urls[stem]): image for stem, image in images.items() if stem in urls}

    def find(self, url: str) -> FileSlice | None:
        """Return the location of the image downloaded from `url`, or None."""
        location = self._locations.get(_digest(url))
        return None if location is None else FileSlice(self._tars[location[0]], *location[1:])


class _TarInfo(tarfile.TarInfo):
    """A member whose extended headers are of limited size: tarfile reads them into memory as long as they claim."""

    def _proc_member(self, archive):  # documented in tarfile.py as the method to override
        if self.type in _EXTENDED_HEADERS and self.size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims to have {self.size:,} bytes")
        return super()._proc_member(archive)  # pyright: ignore[reportAttributeAccessIssue]


def open_tar(path: Path, mode: Literal["r:", "r:*"]) -> tarfile.TarFile:
    """Open an archive; reading it raises one of TAR_DAMAGE where it is damaged."""
    check_regular(path)
    return tarfile.open(path, mode, tarinfo=_TarInfo)


def next_member(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    """Return the next member of an archive, keeping none of them in memory."""
    member = archive.next()
    archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
    return member


def plain_files(tar: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files of a tar that can be read in place, up to the first damaged header."""
    try:
        with open_tar(tar, "r:") as archive:
            while (member := next_member(archive)) is not None:
                parts = PurePosixPath(member.name).parts
                # A sparse member could claim any size.
                if member.isreg() and not member.issparse() and member.size <= MAX_FILE_BYTES and ".." not in parts:
                    yield member
    except TAR_DAMAGE as error:
        with tar.open("rb") as file:
            if file.read(2) == b"\x1f\x8b":
                raise UserError(f"{tar} is compressed, but images are read in place: unpack it to a .tar.") from error


def _url(tar: Path, member: tarfile.TarInfo) -> str | None:
    try:
        content = parse_json(FileSlice(tar, member.offset_data, member.size).read_bytes(MAX_TEXT_BYTES))
    except (OSError, ValueError, UserError):
        return None
    url = content.get("url") if isinstance(content, dict) else None
    return url if isinstance(url, str) else None


def _digest(url: str) -> bytes:
    return hashlib.blake2b(url.encode("utf-8", "replace"), digest_size=12).digest()

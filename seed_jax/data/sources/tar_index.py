"""Where the files in tars lie, by name or by the address they were downloaded from."""

import hashlib
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from seed_jax.data.sources.units import Slice
from seed_jax.errors import UserError

LARGEST = 1 << 28  # bytes; a larger member is no picture, and a sparse one could claim any size
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
_DAMAGE = (tarfile.TarError, EOFError, ValueError)


class TarIndex:
    """Look up files of uncompressed tars by name, or by their last part where that is unique.

    It takes about 200 bytes of memory a picture. Links, devices and names that lead out are not in it.
    """

    def __init__(self, tars: Sequence[Path]):
        self._tars = list(tars)
        self._places: dict[str, tuple[int, int, int]] = {}
        self._short: dict[str, tuple[int, int, int] | None] = {}
        for number, tar in enumerate(self._tars):
            for member in plain_files(tar):
                place = (number, member.offset_data, member.size)
                self._places.setdefault(member.name.removeprefix("./"), place)
                base = PurePosixPath(member.name).name
                self._short[base] = None if base in self._short else place

    def find(self, name: str) -> Slice | None:
        place = self._places.get(name) or self._short.get(PurePosixPath(name).name)
        return None if place is None else Slice(self._tars[place[0]], *place[1:])


class AddressIndex:
    """Look up pictures in img2dataset's tars by the address (`url`) in the JSON file beside each."""

    def __init__(self, tars: Sequence[Path]):
        self._tars = list(tars)
        self._places: dict[bytes, tuple[int, int, int]] = {}
        for number, tar in enumerate(self._tars):
            pictures, addresses = {}, {}
            for member in plain_files(tar):
                stem, extension = PurePosixPath(member.name).stem, PurePosixPath(member.name).suffix
                if extension in _PICTURES:
                    pictures[stem] = (number, member.offset_data, member.size)
                elif extension == ".json" and (address := _address(tar, member)):
                    addresses[stem] = address
            self._places |= {_short(addresses[stem]): place for stem, place in pictures.items() if stem in addresses}

    def find(self, address: str) -> Slice | None:
        place = self._places.get(_short(address))
        return None if place is None else Slice(self._tars[place[0]], *place[1:])


def plain_files(tar: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the ordinary files of a tar that can be read in place; what follows a damage is not there."""
    try:
        with tarfile.open(tar, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()
                parts = PurePosixPath(member.name).parts
                if member.isreg() and not member.issparse() and member.size <= LARGEST and ".." not in parts:
                    yield member
    except _DAMAGE as error:
        with tar.open("rb") as file:
            if file.read(2) == b"\x1f\x8b":
                raise UserError(f"{tar} is compressed: pictures are read in place, so unpack it to a .tar.") from error


def _address(tar: Path, member: tarfile.TarInfo) -> str | None:
    try:
        content = json.loads(Slice(tar, member.offset_data, member.size).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    address = content.get("url") if isinstance(content, dict) else None
    return address if isinstance(address, str) else None


def _short(address: str) -> bytes:
    return hashlib.blake2b(address.encode("utf-8", "replace"), digest_size=12).digest()

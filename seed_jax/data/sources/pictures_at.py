"""Where the pictures of a list lie: a folder, tars, or a JSON file of base64 texts, looked up by name."""

import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from seed_jax.data.sources.tar_index import LARGEST, TarIndex
from seed_jax.data.sources.units import Slice, UnusableError
from seed_jax.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
_BASE64 = re.compile(rb'"((?:[^"\\]|\\.){1,500})"\s*:\s*"([A-Za-z0-9+/=]*)"')
_WINDOW = 1 << 22


class PicturesAt:
    """Find pictures by the names that a list gives them.

    Args:
        place: a folder, perhaps of tars; a tar; or a JSON file `{name: base64}`. None: the folder of each list.
    """

    def __init__(self, place: str | Path | None):
        self.place = None if place is None else Path(place)
        if self.place is not None and not self.place.exists():
            raise UserError(f"--images {place} does not exist: expected a folder of pictures, or tars.")
        # Only the last table stays in memory, also where several lists share it.
        self._indexed = functools.lru_cache(maxsize=1)(_indexed)
        self._table = functools.lru_cache(maxsize=1)(self._table_for)

    def find(self, name: str, list_file: Path, extensions: Sequence[str] = ("",)) -> Path | Slice:
        """Return where a picture lies; UnusableError for an address, a name that leads out, or one that is not there.

        Args:
            list_file: the file that names the picture.
            extensions: what to try after the name; with one alone, a file in a folder need not exist yet.
        """
        if not isinstance(name, str) or not name or "\0" in name or "\ud800" <= max(name) <= "\udfff":
            raise UnusableError("no picture named", repr(name)[:80])
        if name.startswith(("http://", "https://")):
            raise UnusableError("picture is not downloaded", name)
        table = self._table(list_file)
        if table is None:
            return _file(self.place or list_file.parent, name, extensions)
        for extension in extensions:
            if (place := table.find(name + extension)) is not None:
                return place
        raise UnusableError("missing picture", name)

    def _table_for(self, list_file: Path) -> "TarIndex | Base64Table | None":
        """Return the table of names for a list; None where its pictures are files of their own."""
        if self.place is None:
            return None
        if self.place.is_file() and self.place.suffix not in (".json", ".tar"):
            raise UserError(f"--images {self.place} is neither a folder, nor a .tar, nor a .json of base64 pictures.")
        files = tuple(tars_for(self.place, list_file))
        return self._indexed(files) if files else None


def _file(folder: Path, name: str, extensions: Sequence[str]) -> Path:
    if ".." in Path(name).parts or not (folder / name).absolute().is_relative_to(folder.absolute()):
        raise UnusableError("unsafe name of a picture", name)
    if len(extensions) == 1:
        return folder / (name + extensions[0])
    try:
        return next(path for extension in extensions if (path := folder / (name + extension)).is_file())
    except (StopIteration, OSError):  # the latter for a name that is too long for a file
        raise UnusableError("missing picture", name) from None


def tars_for(place: Path, list_file: Path) -> list[Path]:
    """Return the tars (or the JSON file) with a list's pictures: those named like it, if there are any, else all."""
    if place.is_file():
        return [place]
    stem = list_file.name.partition(".")[0]
    if (place / f"{stem}.tar").is_file():
        return [place / f"{stem}.tar"]
    folder = place / stem if any((place / stem).glob("*.tar")) else place
    return sorted(folder.glob("*.tar"))


def _indexed(files: tuple[Path, ...]) -> "TarIndex | Base64Table":
    return Base64Table(files[0]) if files[0].suffix == ".json" else TarIndex(files)


class Base64Table:
    """Where in a file `{"name": "base64 of a picture", ...}` each picture lies."""

    def __init__(self, path: Path):
        self.path = path
        self._places = {name: (offset, size) for name, offset, size in _base64_places(path)}

    def find(self, name: str) -> Slice | None:
        place = self._places.get(name)
        return None if place is None else Slice(self.path, *place, base64=True)


def _base64_places(path: Path) -> Iterator[tuple[str, int, int]]:
    with path.open("rb") as file:
        start, window = 0, b""
        while fresh := file.read(max(_WINDOW, len(window))):
            window += fresh
            end = 0
            for match in _BASE64.finditer(window):
                yield match[1].decode("utf-8", "replace"), start + match.start(2), len(match[2])
                end = match.end()
            # A pair that the window cuts is found with the next one.
            start, window = start + end, window[end:]
            if len(window) > LARGEST:
                raise UserError(f"{path} is no JSON file of names and base64 texts: see byte {start}.")

"""Webdataset tars, such as img2dataset writes them: `000017.jpg`, `000017.txt`, `000017.json` side by side.

The caption is the `.txt`, or else `caption` of the `.json`, whose other keys become metadata. Nothing is ever unpacked
to disk; links and devices are ignored, and a name that leads out of the archive makes its sample a bad one.
"""

import dataclasses
import gzip
import json
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from seed_jax.data.sources.units import Bad, InputFile, Raw, named, plain
from seed_jax.errors import UserError

PICTURES = ("jpg", "jpeg", "png", "webp")
_WANTED = (*PICTURES, "txt", "json")
_LARGEST = 1 << 28  # bytes; a larger member is no picture, and a sparse one could claim any size
_DAMAGE = (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, ValueError)


@dataclasses.dataclass
class _Group:
    """Consecutive members of one key; `contents` has their bytes by extension if they are wanted."""

    key: str
    contents: dict[str, bytes] = dataclasses.field(default_factory=dict)
    problem: Bad | None = None


class WebDatasetSource:
    """Read tars, or folders of tars; a work unit is a group of files with one key, or the place where a tar breaks."""

    kind = "webdataset"

    def __init__(self, paths: Sequence[str | Path]):
        self.files = named([file for path in paths for file in _tars(Path(path))])

    def count(self, file: InputFile) -> int:
        return sum(1 for _ in _groups(file.path, 0, 0))

    def read(self, file: InputFile, start: int, stop: int) -> Iterator[Raw | Bad]:
        for index, group in enumerate(_groups(file.path, start, stop)):
            if index >= stop:
                return
            if index >= start:
                yield _unit(f"{file.name}/{group.key}", group)


def _tars(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} does not exist: expected a tar or a folder of tars.")
    found = sorted([*path.rglob("*.tar"), *path.rglob("*.tar.gz"), *path.rglob("*.tgz")])
    if not found:
        raise UserError(f"{path} has no tars: expected files named *.tar, *.tar.gz or *.tgz.")
    return found


def _groups(path: Path, start: int, stop: int) -> Iterator[_Group]:
    """Yield all groups; only those numbered [start, stop) are read, the others merely walked over."""
    group, number = None, -1
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in _members(archive):
                key, _, extension = _split(member.name)
                if group is None or key != group.key:
                    if group is not None:
                        yield group
                    group, number = _Group(key), number + 1
                if start <= number < stop:
                    _add(group, archive, member, extension)
    except _DAMAGE as error:
        if group is not None:
            yield group
        yield _Group("(damaged)", problem=Bad("", "damaged archive", str(error) or type(error).__name__))
        return
    if group is not None:
        yield group


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the plain files of an archive that may belong to a sample, keeping none of them in memory."""
    while (member := archive.next()) is not None:
        archive.members.clear()
        if member.isreg() and _split(member.name)[2] in _WANTED:
            yield member
    # tarfile takes a broken header for the end; an archive that was written to its end closes with zeros.
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it breaks off at byte {archive.offset}")


def _split(name: str) -> tuple[str, str, str]:
    """Split `a/b.seg.png` into the key `a/b`, a dot and the extension `seg.png`; hidden files have no extension."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    return (folder + slash + stem, dot, extension.lower()) if stem else (name, "", "")


def _add(group: _Group, archive: tarfile.TarFile, member: tarfile.TarInfo, extension: str) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        group.problem = Bad("", "unsafe name in archive", member.name)
    elif extension in group.contents:
        group.problem = Bad("", "same name twice in archive", member.name)
    elif member.issparse() or member.size > _LARGEST:
        group.problem = Bad("", "file in archive too large", f"{member.name} has {member.size} bytes")
    else:
        group.contents[extension] = archive.extractfile(member).read()


def _unit(name: str, group: _Group) -> Raw | Bad:
    if group.problem is not None:
        return dataclasses.replace(group.problem, id=name)
    pictures = [extension for extension in PICTURES if extension in group.contents]
    if len(pictures) != 1:
        return Bad(name, "no picture" if not pictures else "several pictures", ", ".join(group.contents))
    try:
        meta = json.loads(group.contents.get("json", b"{}").decode("utf-8-sig"))
        text = group.contents["txt"].decode("utf-8-sig") if "txt" in group.contents else None
    except UnicodeDecodeError as error:
        return Bad(name, "text is not UTF-8", str(error))
    except (ValueError, RecursionError) as error:
        return Bad(name, "metadata is not JSON", str(error))
    if not isinstance(meta, dict):
        return Bad(name, "metadata is not a JSON object", f"a {type(meta).__name__}")
    text = meta.pop("caption", None) if text is None else text
    if not isinstance(text, str):
        return Bad(name, "no caption", "neither .txt nor `caption` in .json")
    meta.pop("caption", None)
    return Raw(name, (group.contents[pictures[0]], text.strip("\r\n")), plain(meta))

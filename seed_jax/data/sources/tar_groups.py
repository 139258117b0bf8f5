"""Tars whose members belong together by name, `000017.jpg` and `000017.txt`, as webdataset writes them.

Nothing is ever unpacked to disk; links and devices are ignored, and a name that leads out of the archive makes its
group a bad one. A tar that breaks off gives one bad group at its end, so that no loss goes uncounted.
"""

import dataclasses
import gzip
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from seed_jax.data.sources.tar_index import LARGEST
from seed_jax.data.sources.units import Bad, found

_DAMAGE = (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, ValueError)


@dataclasses.dataclass
class Group:
    """Consecutive members of one key; `contents` has their bytes by extension if they are wanted."""

    key: str
    contents: dict[str, bytes] = dataclasses.field(default_factory=dict)
    problem: Bad | None = None


def tars(path: Path) -> list[Path]:
    """Return a tar, or the tars below a folder."""
    return found([path], ("*.tar", "*.tar.gz", "*.tgz"), "tars")


def groups(path: Path, start: int, stop: int, extensions: Sequence[str]) -> Iterator[Group]:
    """Yield all groups; only those numbered [start, stop) are read, the others merely walked over."""
    group, number = None, -1
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in _members(archive, extensions):
                key, _, extension = _split(member.name)
                if group is None or key != group.key:
                    if group is not None:
                        yield group
                    group, number = Group(key), number + 1
                if start <= number < stop:
                    _add(group, archive, member, extension)
    except _DAMAGE as error:
        if group is not None:
            yield group
        yield Group("(damaged)", problem=Bad("", "damaged archive", str(error) or type(error).__name__))
        return
    if group is not None:
        yield group


def _members(archive: tarfile.TarFile, extensions: Sequence[str]) -> Iterator[tarfile.TarInfo]:
    """Yield the plain files of an archive that may belong to a sample, keeping none of them in memory."""
    while (member := archive.next()) is not None:
        archive.members.clear()
        if member.isreg() and _split(member.name)[2] in extensions:
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


def _add(group: Group, archive: tarfile.TarFile, member: tarfile.TarInfo, extension: str) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        group.problem = Bad("", "unsafe name in archive", member.name)
    elif extension in group.contents:
        group.problem = Bad("", "same name twice in archive", member.name)
    elif member.issparse() or member.size > LARGEST:
        group.problem = Bad("", "file in archive too large", f"{member.name} has {member.size} bytes")
    else:
        group.contents[extension] = archive.extractfile(member).read()

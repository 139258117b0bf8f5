"""Tar archives whose members are grouped by name, `000017.jpg` and `000017.txt`, as WebDataset writes them.

Nothing is unpacked to disk; links and devices are ignored, and a name that leads outside the archive makes its group
unusable. A truncated tar gives one unusable group at its end, so that the loss is counted.
"""

import dataclasses
import gzip
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from seed_jax.data.sources.samples import SkippedSample, find_files
from seed_jax.data.sources.tar_index import MAX_IMAGE_BYTES, next_member

_DAMAGE = (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, ValueError)


@dataclasses.dataclass
class TarGroup:
    """Consecutive members with one key.

    Attributes:
        key: path without extension.
        contents: extension -> bytes; empty if the group was only counted.
        problem: why the group is unusable.
    """

    key: str
    contents: dict[str, bytes] = dataclasses.field(default_factory=dict)
    problem: SkippedSample | None = None


def find_tars(path: Path) -> list[Path]:
    """Return a tar file, or the tar files below a folder."""
    return find_files([path], ("*.tar", "*.tar.gz", "*.tgz"), "tar files")


def groups(path: Path, start: int, stop: int, extensions: Sequence[str]) -> Iterator[TarGroup]:
    """Yield all groups of a tar; read the contents of those numbered [start, stop) only.

    Args:
        path: the tar file, possibly compressed.
        start, stop: range of groups to read.
        extensions: extensions that belong to a sample.
    """
    group = None
    number = -1
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in _members(archive, extensions):
                key, extension = _split(member.name)
                if group is None or key != group.key:
                    if group is not None:
                        yield group
                    group = TarGroup(key)
                    number += 1
                if start <= number < stop:
                    _add(group, archive, member, extension)
    except _DAMAGE as error:
        if group is not None:
            yield group
        yield TarGroup("(damaged)", problem=SkippedSample("", "damaged archive", str(error) or type(error).__name__))
        return
    if group is not None:
        yield group


def _members(archive: tarfile.TarFile, extensions: Sequence[str]) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files that may belong to a sample, keeping none of them in memory."""
    while (member := next_member(archive)) is not None:
        if member.isreg() and _split(member.name)[1] in extensions:
            yield member
    # tarfile takes a damaged header for the end; a complete archive ends with a block of zeros.
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"the archive is truncated at byte {archive.offset}")


def _split(name: str) -> tuple[str, str]:
    """Split `a/b.seg.png` into the key `a/b` and the extension `seg.png`; hidden files have no extension."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (folder + slash + stem, extension.lower()) if stem else (name, "")


def _add(group: TarGroup, archive: tarfile.TarFile, member: tarfile.TarInfo, extension: str) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        group.problem = SkippedSample("", "unsafe name in archive", member.name)
    elif extension in group.contents:
        group.problem = SkippedSample("", "same name twice in archive", member.name)
    elif member.issparse() or member.size > MAX_IMAGE_BYTES:
        group.problem = SkippedSample("", "file in archive too large", f"{member.name} has {member.size} bytes")
    elif (file := archive.extractfile(member)) is not None:
        group.contents[extension] = file.read()

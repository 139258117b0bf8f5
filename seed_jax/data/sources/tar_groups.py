"""Tar archives whose members are grouped by name, `000017.jpg` and `000017.txt`, as WebDataset writes them.

Nothing is unpacked to disk; links, devices, hidden files and files without extension are ignored, and a name that leads
outside the archive makes its group unusable. A truncated tar gives one unusable group at its end, so that the loss is
counted.
"""

import dataclasses
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from seed_jax.data.sources.samples import SkippedSample, find_files
from seed_jax.data.sources.tar_index import TAR_DAMAGE, next_member, open_tar
from seed_jax.files import MAX_TEXT_BYTES
from seed_jax.images import EXTENSIONS, MAX_FILE_BYTES

# Of the members whose names agree up to the first dot, which are in memory at the same time.
MAX_MEMBERS = 10_000
MAX_CONTENT_BYTES = 512 * 2**20


@dataclasses.dataclass
class TarGroup:
    """The files of one sample.

    Attributes:
        key: path without extension.
        extensions: extensions of all files, in the order of the archive.
        kinds: kinds of the files that belong to the sample.
        contents: extension -> bytes of the wanted files; empty if the group was only counted.
        problem: why the group is unusable.
    """

    key: str
    extensions: list[str] = dataclasses.field(default_factory=list)
    kinds: set[str] = dataclasses.field(default_factory=set)
    contents: dict[str, bytes] = dataclasses.field(default_factory=dict)
    problem: SkippedSample | None = None


@dataclasses.dataclass
class _Member:
    """A file of an archive: its path, divided at the first dot of the file name, and its content if it was read."""

    path: str
    key: str
    extension: str
    content: bytes | None = None
    problem: SkippedSample | None = None

    @property
    def last_extension(self) -> str:
        return self.extension.rpartition(".")[2]

    @property
    def stem(self) -> str:
        """The path up to the last dot."""
        return self.path.rpartition(".")[0]


def find_tars(path: Path) -> list[Path]:
    """Return a tar file, or the tar files below a folder."""
    return find_files([path], ("*.tar", "*.tar.gz", "*.tgz"), "tar files")


def groups(path: Path, start: int, stop: int, kinds: Mapping[str, str]) -> Iterator[TarGroup]:
    """Yield all groups of a tar; read the contents of those numbered [start, stop) only.

    As in WebDataset, consecutive files whose names agree up to the first dot belong together, also with extensions of
    several parts (`1.input.jpg`, `1.output.txt`). Where names contain dots (`22.05.jpg`, `22.06.jpg`) and this rule
    would give a group two files of one kind, they are divided at the last dot.

    Args:
        path: the tar file, possibly compressed.
        start, stop: range of groups to read.
        kinds: extension -> kind of file; a sample has one file of each kind.
    """
    number = 0
    members: list[_Member] = []
    try:
        with open_tar(path, "r:*") as archive:
            stems: set[str] = set()
            size = 0
            for info in _files(archive):
                member = _divide(info.name)
                if members and (member.key != members[0].key or _is_full(members, member)):
                    for group in _grouped(members, kinds):
                        yield group
                        number += 1
                    members, stems, size = [], set(), 0
                members.append(member)
                stems.add(member.stem)
                # An upper bound of the number of this member's group, which is known when `members` is complete.
                last = number + len(stems) - 1
                if member.last_extension in kinds and number < stop and last >= start:
                    _read(member, archive, info, MAX_CONTENT_BYTES - size)
                    size += len(member.content or b"")
    except TAR_DAMAGE as error:
        yield from _grouped(members, kinds)
        yield TarGroup("(damaged)", problem=SkippedSample("", "damaged archive", str(error) or type(error).__name__))
        return
    yield from _grouped(members, kinds)


def _is_full(members: list[_Member], following: _Member) -> bool:
    """Whether so many names agree up to the first dot that they are grouped before the last of them is read."""
    return len(members) >= MAX_MEMBERS and (following.stem != members[-1].stem or len(members) >= 2 * MAX_MEMBERS)


def _files(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the visible regular files that have an extension, keeping none of them in memory."""
    while (member := next_member(archive)) is not None:
        if member.isreg() and _divide(member.name).extension:
            yield member
    # tarfile takes a damaged header for the end; a complete archive ends with a block of zeros.
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"the archive is truncated at byte {archive.offset}")


def _divide(path: str) -> _Member:
    """Divide `a/b.seg.png` into the key `a/b` and the extension `seg.png`; hidden files have no extension."""
    folder, slash, base = path.rpartition("/")
    stem, _, extension = base.partition(".")
    return _Member(path, folder + slash + stem, extension.lower()) if stem else _Member(path, path, "")


def _grouped(members: list[_Member], kinds: Mapping[str, str]) -> Iterator[TarGroup]:
    """Yield the samples among files whose names agree up to the first dot."""
    if not members:
        return
    wanted = [member for member in members if member.last_extension in kinds]
    own = [member for member in wanted if "." not in member.extension]
    by_stem: dict[str, list[_Member]] = {}
    for member in wanted:
        if "." in member.extension:
            by_stem.setdefault(member.stem, []).append(member)
    found = [kinds[member.last_extension] for member in wanted]
    if not own and (len(by_stem) <= 1 or len(set(found)) == len(found)):
        key = next(iter(by_stem)) if len(by_stem) == 1 else members[0].key
        yield _group(key, members, wanted, kinds)
        return
    separate = []
    for stem, files in by_stem.items():
        if not own or len({kinds[file.last_extension] for file in files}) >= min(2, len(set(kinds.values()))):
            separate.append((stem, files))
            continue
        # A further file of the sample (`1.jpg`, `1.txt`, `1.mask.png`), used if it has no other of this kind.
        present = {kinds[file.last_extension] for file in own}
        own += [file for file in files if kinds[file.last_extension] not in present]
    if own:
        yield _group(members[0].key, members, own, kinds)
    for stem, files in separate:
        yield _group(stem, files, files, kinds)


def _group(key: str, members: list[_Member], wanted: list[_Member], kinds: Mapping[str, str]) -> TarGroup:
    group = TarGroup(key, [member.extension for member in members], {kinds[member.last_extension] for member in wanted})
    for member in wanted:
        if member.problem is not None:
            group.problem = member.problem
        elif member.content is not None and member.last_extension in group.contents:
            group.problem = SkippedSample("", "same name twice in archive", member.path)
        elif member.content is not None:
            group.contents[member.last_extension] = member.content
    return group


def _read(member: _Member, archive: tarfile.TarFile, info: tarfile.TarInfo, max_bytes: int) -> None:
    """Read the content of a member, or say why not; `max_bytes` is what its group may still take."""
    path = PurePosixPath(info.name)
    largest = MAX_FILE_BYTES if f".{member.last_extension}" in EXTENSIONS else MAX_TEXT_BYTES
    if path.is_absolute() or ".." in path.parts or "\\" in info.name:
        member.problem = SkippedSample("", "unsafe name in archive", info.name)
    elif info.issparse() or info.size > min(largest, max_bytes):
        member.problem = SkippedSample("", "file in archive too large", f"{info.name} has {info.size} bytes")
    elif (file := archive.extractfile(info)) is not None:
        member.content = file.read()

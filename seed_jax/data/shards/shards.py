"""Shards: ArrayRecord files of records, with a manifest beside them.

Each record is one ArrayRecord group (`group_size:1`), so that random access needs one read. Shards are not compressed:
codes and images do not compress well, and the bytes must not depend on the version of a compressor.
"""

import bisect
import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from seed_jax.data.shards import manifest as manifests
from seed_jax.data.shards.manifest import Manifest, ShardFile
from seed_jax.data.shards.records import Record, decode
from seed_jax.errors import UserError
from seed_jax.files import atomic_path

WRITER_OPTIONS = "group_size:1,uncompressed"
_NUM_COUNTED = 8  # shards whose records are counted when a directory is opened


def shard_name(index: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{index:06d}.array_record"


def write_shard(path: Path, records: Iterable[bytes]) -> ShardFile:
    """Write serialized records to a shard atomically; equal records give equal bytes."""
    from array_record.python.array_record_module import ArrayRecordWriter  # only where shards are read or written

    count = 0
    # Two processes that build the same shard write the same bytes, and the last rename wins.
    with atomic_path(path) as temporary:
        writer = ArrayRecordWriter(str(temporary), WRITER_OPTIONS)
        try:
            for record in records:
                writer.write(record)
                count += 1
        finally:
            writer.close()
        return ShardFile(path.name, count, temporary.stat().st_size, _digest(temporary))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Shards:
    """The records of a shard directory by number: a random-access source for Grain; picklable.

        shards = open_shards("shards/laion")
        record = shards[0]

    Attributes:
        directory: the shard directory.
        manifest: its manifest.
    """

    def __init__(self, directory: str | Path, manifest: Manifest):
        self.directory = Path(directory)
        self.manifest = manifest

    def __len__(self) -> int:
        return self.manifest.records

    def __getitem__(self, index: int) -> Record:
        try:
            data = self._source[index]
        except RuntimeError as error:
            shard, number = self.locate(index)
            raise UserError(
                f"Record {number} of {shard} cannot be read ({error}): copy the file again or build it again."
            ) from error
        try:
            return decode(data)
        except UserError:
            shard, number = self.locate(index)
            return decode(data, str(shard), number)  # raises again, now naming the record

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def locate(self, index: int) -> tuple[Path, int]:
        """Return the shard file that contains record `index`, and the number of the record in it."""
        for shard in self.manifest.shards:
            if index < shard.records:
                return self.directory / shard.name, index
            index -= shard.records
        raise IndexError(index)

    @property
    def hashes(self) -> list[str]:
        """The SHA-256 of each shard: identifies the records and their order."""
        return [shard.sha256 for shard in self.manifest.shards]

    @functools.cached_property
    def _source(self) -> Any:
        from grain.sources import ArrayRecordDataSource  # slow to import; writing shards does not need Grain

        # With the range of records in the name, Grain need not open every shard to count its records.
        files = [f"{self.directory / shard.name}[0:{shard.records}]" for shard in self.manifest.shards if shard.records]
        return ArrayRecordDataSource(files)


class JoinedShards:
    """The records of several shard directories in sequence; picklable."""

    def __init__(self, directories: Sequence[Shards]):
        self.directories = tuple(directories)
        self._ends = list(itertools.accumulate(map(len, self.directories)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        shards, index = self._directory_of(index)
        return shards[index]

    def locate(self, index: int) -> tuple[Path, int]:
        """Return the shard file that contains record `index`, and the number of the record in it."""
        shards, index = self._directory_of(index)
        return shards.locate(index)

    @property
    def hashes(self) -> list[str]:
        """The SHA-256 of each shard of all directories."""
        return [digest for shards in self.directories for digest in shards.hashes]

    def _directory_of(self, index: int) -> tuple[Shards, int]:
        number = bisect.bisect_right(self._ends, index)
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.directories[number], index - (self._ends[number - 1] if number else 0)


def open_shards(directory: str | Path, tokenizer: str | None = None, *, verify: bool = False) -> Shards:
    """Open a shard directory after checking its files against the manifest.

    Args:
        directory: the shard directory.
        tokenizer: fingerprint of the image tokenizer whose codes are expected, or None to accept any.
        verify: also verify the SHA-256 of every shard (reads all files).

    Raises:
        UserError: no manifest, no records, codes of another tokenizer, or missing or damaged files.
    """
    directory = Path(directory)
    manifest = manifests.load(directory)
    if tokenizer is not None and manifest.items.get("codes") and manifest.tokenizer != tokenizer:
        raise UserError(
            f"The codes in {directory} were made by image tokenizer {_short(manifest.tokenizer)}, expected "
            f"{_short(tokenizer)}: build the shards with the tokenizer of this model."
        )
    if not manifest.records:
        raise UserError(f"{directory} holds no records: see the reasons in its bad.jsonl.")
    # Counting records opens a file: without `verify`, some of many shards suffice to notice an edited manifest.
    stride = 1 if verify else -(-len(manifest.shards) // _NUM_COUNTED)
    problems = [
        problem
        for number, shard in enumerate(manifest.shards)
        if (problem := _problem(directory, shard, verify, count=number % stride == 0))
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(
            f"Shards in {directory} are damaged ({'; '.join(problems[:5])}{more}): copy or build them again."
        )
    return Shards(directory, manifest)


def _problem(directory: Path, shard: ShardFile, verify: bool, count: bool) -> str | None:
    path = directory / shard.name
    if not path.is_file():
        return f"{shard.name} is missing"
    if path.stat().st_size != shard.bytes:
        return f"{shard.name} has {path.stat().st_size} bytes, expected {shard.bytes}"
    if verify and _digest(path) != shard.sha256:
        return f"{shard.name} does not match its recorded SHA-256"
    if count and (records := _count_records(path)) not in (None, shard.records):
        return f"{shard.name} has {records} records, expected {shard.records}"
    return None


def _short(fingerprint: str | None) -> str:
    return fingerprint[:12] if fingerprint else "(none)"


def _count_records(path: Path) -> int | None:
    """Return the number of records of a shard, or None if it cannot be opened: reading it names the problem."""
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(str(path))
        records = reader.num_records()
        reader.close()
    except RuntimeError:
        return None
    return records

"""Shards: ArrayRecord files of records, with a manifest beside them.

One record is one ArrayRecord group (`group_size:1`), so that reading any record costs one read; nothing is compressed,
since codes and pictures do not shrink and the bytes must not depend on the version of a compressor.
"""

import bisect
import functools
import hashlib
import itertools
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordWriter

from seed_jax.data.shards import manifest as manifests
from seed_jax.data.shards.manifest import Manifest, ShardFile
from seed_jax.data.shards.records import Record, decode
from seed_jax.errors import UserError

WRITER_OPTIONS = "group_size:1,uncompressed"


def shard_name(index: int) -> str:
    return f"shard-{index:06d}.array_record"


def write_shard(path: Path, records: Iterable[bytes]) -> ShardFile:
    """Write encoded records to a shard, which appears whole or not at all; equal records give equal bytes."""
    # A name of its own: two processes that make the same shard make the same bytes, and the last one wins.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    count = 0
    try:
        writer = ArrayRecordWriter(str(temporary), WRITER_OPTIONS)
        try:
            for record in records:
                writer.write(record)
                count += 1
        finally:
            writer.close()
        shard = ShardFile(path.name, count, temporary.stat().st_size, _synced_digest(temporary))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return shard


def _synced_digest(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


class Shards:
    """The records of a shard directory by number: a random-access source for Grain; can be pickled.

    Attributes:
        directory: where the shards lie.
        manifest: what they hold.
    """

    def __init__(self, directory: str | Path, manifest: Manifest):
        self.directory, self.manifest = Path(directory), manifest

    def __len__(self) -> int:
        return self.manifest.records

    def __getitem__(self, index: int) -> Record:
        try:
            data = self._source[index]
        except RuntimeError as error:
            shard, place = self.locate(index)
            raise UserError(
                f"Record {place} of {shard} cannot be read ({error}): copy the file again or rebuild it."
            ) from error
        try:
            return decode(data)
        except UserError:
            shard, place = self.locate(index)
            return decode(data, str(shard), place)  # fails again, now naming the place

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def locate(self, index: int) -> tuple[Path, int]:
        """Return the shard that holds record `index`, and the record's number within it."""
        for shard in self.manifest.shards:
            if index < shard.records:
                return self.directory / shard.name, index
            index -= shard.records
        raise IndexError(index)

    @property
    def hashes(self) -> list[str]:
        """Return the hash of each shard: what the records are, and their order."""
        return [shard.sha256 for shard in self.manifest.shards]

    @functools.cached_property
    def _source(self):
        from grain.sources import ArrayRecordDataSource  # late: writing shards does not need Grain

        # With their range of records in the name, ten thousand shards need not be opened only to be counted.
        used = [shard for shard in self.manifest.shards if shard.records]
        return ArrayRecordDataSource([f"{self.directory / shard.name}[0:{shard.records}]" for shard in used])


class JoinedShards:
    """The records of several shard directories one after the other; can be pickled."""

    def __init__(self, several: Sequence[Shards]):
        self.several = tuple(several)
        self._ends = list(itertools.accumulate(map(len, self.several)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        shards, index = self._part(index)
        return shards[index]

    def locate(self, index: int) -> tuple[Path, int]:
        """Return the shard that holds record `index`, and the record's number within it."""
        shards, index = self._part(index)
        return shards.locate(index)

    @property
    def hashes(self) -> list[str]:
        return [each for shards in self.several for each in shards.hashes]

    def _part(self, index: int) -> tuple[Shards, int]:
        number = bisect.bisect_right(self._ends, index)
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.several[number], index - (self._ends[number - 1] if number else 0)


def open_shards(directory: str | Path, tokenizer: str | None = None, *, verify: bool = False) -> Shards:
    """Open a directory of shards after checking that its files are those of its manifest.

    Args:
        tokenizer: fingerprint of the image tokenizer whose codes are expected, or None to take any.
        verify: also compare the content of every shard with its recorded hash (reads everything once).
    """
    directory = Path(directory)
    manifest = manifests.load(directory)
    if tokenizer is not None and manifest.items.get("codes") and manifest.tokenizer != tokenizer:
        raise UserError(
            f"The codes in {directory} were made by image tokenizer {_short(manifest.tokenizer)}, expected "
            f"{_short(tokenizer)}: build the shards with the tokenizer of this model."
        )
    if not manifest.records:
        raise UserError(f"{directory} holds no records: see its bad.jsonl for why they were left out.")
    problems = [problem for shard in manifest.shards if (problem := _problem(directory, shard, verify))]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(
            f"Shards in {directory} are damaged: {'; '.join(problems[:5])}{more}; copy or build them again."
        )
    return Shards(directory, manifest)


def _problem(directory: Path, shard: ShardFile, verify: bool) -> str | None:
    path = directory / shard.name
    if not path.is_file():
        return f"{shard.name} is missing"
    if path.stat().st_size != shard.bytes:
        return f"{shard.name} has {path.stat().st_size} bytes, expected {shard.bytes}"
    if verify and _synced_digest(path) != shard.sha256:
        return f"{shard.name} does not have the recorded content"
    return None


def _short(fingerprint: str | None) -> str:
    return fingerprint[:12] if fingerprint else "(none)"

"""The plan of a build: the mapping from input samples to shards, and the options that determine the output.

Shard s holds the usable samples among input samples [s * shard_size, (s + 1) * shard_size), counted over all input
files. Any process can therefore build any shard at any time and obtains the same bytes.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seed_jax.data.shards.manifest import to_json
from seed_jax.data.sources import InputFile, Source
from seed_jax.errors import UserError
from seed_jax.files import parse_json, read_text, write_bytes

SCHEMA = 1
PLAN = "plan.json"


@dataclasses.dataclass(frozen=True)
class BuildPlan:
    """The inputs and options that determine the bytes of all shards.

    Attributes:
        source: kind of the source.
        files: name of an input file -> (size in bytes, number of samples), in order.
        shard_size: input samples per shard.
        batch_size: images per encoder batch; 0 without an encoder.
        tokenizer: fingerprint of the image tokenizer, or None.
        preprocessing: image preprocessing of the tokenizer, or None.
        options: options of the source.
        filters: enabled image filters.
        precision: of the image tokenizer's computation, or None.
        schema: version of this format.
    """

    source: str
    files: dict[str, tuple[int, int]]
    shard_size: int
    batch_size: int
    tokenizer: str | None
    preprocessing: dict[str, Any] | None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    filters: dict[str, Any] = dataclasses.field(default_factory=dict)
    precision: str | None = None
    schema: int = SCHEMA

    @property
    def num_samples(self) -> int:
        return sum(count for _, count in self.files.values())

    @property
    def num_shards(self) -> int:
        return -(-self.num_samples // self.shard_size)

    def shard_range(self, shard: int) -> range:
        """Return the numbers of the input samples of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_samples))

    def file_ranges(self, start: int, stop: int) -> Iterator[tuple[str, int, int]]:
        """Split input samples [start, stop) by file; yield (file name, start, stop) relative to each file."""
        first = 0
        for name, (_, count) in self.files.items():
            low = max(start, first)
            high = min(stop, first + count)
            if low < high:
                yield name, low - first, high - first
            first += count


def make_plan(source: Source, known: BuildPlan | None = None, **options: Any) -> BuildPlan:
    """Count the samples of all input files and make a plan.

    Args:
        source: the input.
        known: an earlier plan, whose counts are reused for files of unchanged size.
        options: the remaining fields of `BuildPlan`.
    """
    counted = known.files if known and known.source == source.kind else {}
    files = {}
    for file in source.files:
        size = file.path.stat().st_size
        known_size, count = counted.get(file.name, (None, 0))
        files[file.name] = (size, count if known_size == size else _count(source, file))
    plan = BuildPlan(source.kind, files, options=source.options, **options)
    if not plan.num_samples:
        paths = ", ".join(str(file.path) for file in source.files[:3])
        raise UserError(f"{paths} contains no samples of source {source.kind}: check --source and --from.")
    return plan


def _count(source: Source, file: InputFile) -> int:
    try:
        return source.count(file)
    except OSError as error:
        raise UserError(f"Cannot read {file.path}: {error.strerror or error}.") from error


def save(directory: Path, plan: BuildPlan) -> None:
    """Write `plan.json` atomically."""
    write_bytes(directory / PLAN, to_json(dataclasses.asdict(plan)))


def load(directory: Path) -> BuildPlan | None:
    """Return the plan in a directory, or None if there is none."""
    path = directory / PLAN
    if not path.is_file():
        return None
    try:
        content = parse_json(read_text(path))
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}, expected {SCHEMA}")
        files = {name: (size, count) for name, (size, count) in content.pop("files").items()}
        # Earlier versions did not record it; their default was float32.
        content.setdefault("precision", "float32" if content.get("tokenizer") else None)
        plan = BuildPlan(files=files, **content)
        numbers = [plan.shard_size, *(number for pair in files.values() for number in pair)]
        if not all(type(number) is int and number >= 0 for number in numbers) or not plan.shard_size:
            raise ValueError("a size or count is not a positive number")
        return plan
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is not a build plan ({error}): delete {directory.parent} and run the command again."
        ) from error


def check_same(old: BuildPlan, new: BuildPlan, out: Path) -> None:
    """Raise UserError, listing all differences, if a build would resume with other inputs or options."""
    before = dataclasses.asdict(old)
    after = dataclasses.asdict(new)
    names = [key for key in before if key != "files" and before[key] != after[key]]
    differences = [f"{name} was {before[name]}, is {after[name]}" for name in names]
    changed = [name for name in {**old.files, **new.files} if old.files.get(name) != new.files.get(name)]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        differences.append(f"input files changed: {', '.join(changed[:3])}{more}")
    elif list(old.files) != list(new.files):
        differences.append("the order of the input files differs")
    if differences:
        raise UserError(
            f"{out} holds shards of a build with other inputs or options ({'; '.join(differences)}): repeat the "
            "command of that build or choose another --out."
        )

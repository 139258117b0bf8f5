"""The plan of a build: which work units make which shard, and with which settings.

Shard s holds the usable records of work units [s * shard_size, (s + 1) * shard_size), counted over all input files. It
follows that a shard can be made by anyone, at any time, again and again, and has the same bytes.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seed_jax.data.shards.manifest import to_json
from seed_jax.data.sources import InputFile, Source
from seed_jax.errors import UserError
from seed_jax.files import write_bytes

SCHEMA = 1
PLAN = "plan.json"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings of a build, and the input files as name -> (bytes, work units)."""

    source: str
    files: dict[str, tuple[int, int]]
    shard_size: int
    batch_size: int
    tokenizer: str | None
    preprocessing: dict[str, Any] | None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    filters: dict[str, Any] = dataclasses.field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def units(self) -> int:
        return sum(units for _, units in self.files.values())

    @property
    def shards(self) -> int:
        return -(-self.units // self.shard_size)

    def shard_range(self, shard: int) -> range:
        """Return the work units of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.units))

    def stretches(self, start: int, stop: int) -> Iterator[tuple[str, int, int]]:
        """Yield the parts of work units [start, stop) file by file: name, first, end."""
        first = 0
        for name, (_, units) in self.files.items():
            low, high = max(start, first), min(stop, first + units)
            if low < high:
                yield name, low - first, high - first
            first += units


def make_plan(source: Source, known: Plan | None = None, **settings: Any) -> Plan:
    """Count the work units of all files, except those that `known` has already counted."""
    counted = known.files if known and known.source == source.kind else {}
    files = {}
    for file in source.files:
        size = file.path.stat().st_size
        known_size, units = counted.get(file.name, (None, None))
        files[file.name] = (size, units if known_size == size else _count(source, file))
    plan = Plan(source.kind, files, options=source.options, **settings)
    if not plan.units:
        raise UserError(f"There is nothing to build from in {', '.join(str(file.path) for file in source.files[:3])}.")
    return plan


def _count(source: Source, file: InputFile) -> int:
    try:
        return source.count(file)
    except OSError as error:
        raise UserError(f"Cannot read {file.path}: {error.strerror or error}.") from error


def save(directory: Path, plan: Plan) -> None:
    write_bytes(directory / PLAN, to_json(dataclasses.asdict(plan)))


def load(directory: Path) -> Plan | None:
    """Return the plan in a directory, or None where there is none."""
    path = directory / PLAN
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}, expected {SCHEMA}")
        files = {name: (size, units) for name, (size, units) in content.pop("files").items()}
        return Plan(files=files, **content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is not a plan of a build ({error}): remove {directory.parent} and build anew."
        ) from error


def check_same(old: Plan, new: Plan, out: Path) -> None:
    """Refuse to go on with other settings or inputs, listing what differs."""
    before, after = dataclasses.asdict(old), dataclasses.asdict(new)
    names = [key for key in before if key != "files" and before[key] != after[key]]
    differences = [f"{name} was {before[name]}, is {after[name]}" for name in names]
    changed = [name for name in {**old.files, **new.files} if old.files.get(name) != new.files.get(name)]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        differences.append(f"input files changed: {', '.join(changed[:3])}{more}")
    elif list(old.files) != list(new.files):
        differences.append("input files are in another order")
    if differences:
        raise UserError(
            f"{out} holds shards of a build with other inputs or settings ({'; '.join(differences)}): "
            "repeat the command of that build, or choose another --out."
        )

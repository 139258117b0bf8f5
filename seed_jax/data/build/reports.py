"""What a build has finished: a report for every shard, and at the end the log of bad records and the manifest."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from seed_jax.data.build.plan import Plan
from seed_jax.data.shards import manifest as manifests
from seed_jax.data.shards.manifest import Manifest, ShardFile, to_json, total
from seed_jax.data.sources import Bad
from seed_jax.files import locked, write_bytes

BAD_LOG = "bad.jsonl"
STATE = "build"


@dataclasses.dataclass(frozen=True)
class Report:
    """A finished shard: its file, how many items of each kind it holds, and what was left out.

    Attributes:
        bad: records that cannot be used.
        filtered: reason -> number of records that a filter left out.
        pictures_left_out: reason -> number of pictures that documents are without.
    """

    file: ShardFile
    items: dict[str, int]
    bad: tuple[Bad, ...]
    filtered: dict[str, int] = dataclasses.field(default_factory=dict)
    pictures_left_out: dict[str, int] = dataclasses.field(default_factory=dict)


def save(out: Path, shard: int, report: Report) -> None:
    """Record that a shard is finished; until then it would be made again."""
    write_bytes(_path(out, shard), to_json(dataclasses.asdict(report)))


def load_all(out: Path, plan: Plan) -> dict[int, Report]:
    """Return the reports of the finished shards that are still as they were written; the others are made again."""
    reports = {shard: _load(_path(out, shard)) for shard in range(plan.shards) if _path(out, shard).is_file()}
    return {shard: each for shard, each in reports.items() if each and _intact(out / each.file.name, each.file)}


def write_log(out: Path, bad: Iterable[Bad]) -> None:
    lines = [json.dumps(dataclasses.asdict(each), ensure_ascii=False) + "\n" for each in bad]
    write_bytes(out / BAD_LOG, "".join(lines).encode("utf-8", "backslashreplace"))


def finish(out: Path, plan: Plan) -> Manifest | None:
    """Write log and manifest and clear up; None while a shard is missing. Doing it twice changes nothing."""
    with locked(out / STATE / "lock-finish", str(out), wait=True):
        if not (out / manifests.MANIFEST).is_file():
            reports = load_all(out, plan)
            if len(reports) < plan.shards:
                return None
            write_log(out, [each for report in reports.values() for each in report.bad])
            manifests.save(out, _manifest(plan, list(reports.values())))
        for path in [*(out / STATE).glob("shard-*.json"), *(out / STATE).glob(".*.tmp"), *out.glob(".*.tmp")]:
            path.unlink(missing_ok=True)
        return manifests.load(out)


def finished(out: Path) -> Manifest | None:
    """Return the manifest of a build that other processes are finishing, or None while it is not there."""
    return manifests.load(out) if (out / manifests.MANIFEST).is_file() else None


def _manifest(plan: Plan, reports: list[Report]) -> Manifest:
    return Manifest(
        source=plan.source,
        shards=tuple(report.file for report in reports),
        items=total([report.items for report in reports]),
        dropped=total(
            [Counter(each.reason for report in reports for each in report.bad), *(each.filtered for each in reports)]
        ),
        tokenizer=plan.tokenizer,
        preprocessing=plan.preprocessing,
        options=plan.options,
        filters=plan.filters,
        pictures_left_out=total([each.pictures_left_out for each in reports]),
    )


def _path(out: Path, shard: int) -> Path:
    return out / STATE / f"shard-{shard:06d}.json"


def _load(path: Path) -> Report | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        file, bad = ShardFile(**content.pop("file")), tuple(Bad(**each) for each in content.pop("bad"))
        return Report(file=file, bad=bad, **content)
    except (ValueError, TypeError, KeyError, AttributeError):  # of another version, or damaged
        return None


def _intact(path: Path, file: ShardFile) -> bool:
    return path.is_file() and path.stat().st_size == file.bytes

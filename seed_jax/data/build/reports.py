"""Progress of a build: one report per finished shard; at the end, the log of skipped samples and the manifest."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from seed_jax.data.build.plan import BuildPlan
from seed_jax.data.shards import manifest as manifests
from seed_jax.data.shards.manifest import Manifest, ShardFile, to_json, total
from seed_jax.data.sources import SkippedSample
from seed_jax.errors import UserError
from seed_jax.files import locked, parse_json, read_text, write_bytes, write_text

SKIPPED_LOG = "bad.jsonl"
STATE_DIRECTORY = "build"


@dataclasses.dataclass(frozen=True)
class ShardReport:
    """A finished shard.

    Attributes:
        file: the shard file.
        items: kind of item -> number of items.
        skipped: samples that are unusable.
        filtered: reason -> number of samples removed by a filter.
        images_left_out: reason -> number of images left out of documents.
    """

    file: ShardFile
    items: dict[str, int]
    skipped: tuple[SkippedSample, ...]
    filtered: dict[str, int] = dataclasses.field(default_factory=dict)
    images_left_out: dict[str, int] = dataclasses.field(default_factory=dict)


def save(out: Path, shard: int, report: ShardReport) -> None:
    """Record that a shard is finished; a shard without a report is built again."""
    write_bytes(_path(out, shard), to_json(dataclasses.asdict(report)))


def load_all(out: Path, plan: BuildPlan) -> dict[int, ShardReport]:
    """Return shard number -> report for the finished shards whose file still has its recorded size."""
    reports = {}
    for shard in range(plan.num_shards):
        report = _load(_path(out, shard))
        if report is not None and _is_intact(out / report.file.name, report.file):
            reports[shard] = report
    return reports


def write_log(out: Path, skipped: Iterable[SkippedSample]) -> None:
    """Write the log of skipped samples, one JSON object per line."""
    entries = ({"id": sample.id, "reason": sample.reason, "detail": sample.detail} for sample in skipped)
    write_text(out / SKIPPED_LOG, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))


def finish(out: Path, plan: BuildPlan) -> Manifest | None:
    """Write log and manifest and delete the reports; return None while a shard is missing. Idempotent.

    Raises:
        UserError: records and dropped samples together are not all input samples.
    """
    with locked(out / STATE_DIRECTORY / "lock-finish", str(out), wait=True):
        if not (out / manifests.MANIFEST).is_file():
            reports = load_all(out, plan)
            if len(reports) < plan.num_shards:
                return None
            manifest = _manifest(plan, list(reports.values()))
            accounted = manifest.records + sum(manifest.dropped.values())
            if accounted != plan.num_samples:
                raise UserError(
                    f"{out} accounts for {accounted} of {plan.num_samples} input samples, records and dropped ones "
                    "together: its reports were changed; delete it and run the command again."
                )
            write_log(out, [sample for report in reports.values() for sample in report.skipped])
            manifests.save(out, manifest)
        state = out / STATE_DIRECTORY
        for path in [*state.glob("shard-*.json"), *state.glob(".*.tmp"), *out.glob(".*.tmp")]:
            path.unlink(missing_ok=True)
        return manifests.load(out)


def finished_manifest(out: Path) -> Manifest | None:
    """Return the manifest of a build that other processes are finishing, or None while it is missing."""
    return manifests.load(out) if (out / manifests.MANIFEST).is_file() else None


def _manifest(plan: BuildPlan, reports: list[ShardReport]) -> Manifest:
    skipped = Counter(sample.reason for report in reports for sample in report.skipped)
    return Manifest(
        source=plan.source,
        shards=tuple(report.file for report in reports),
        items=total([report.items for report in reports]),
        dropped=total([skipped, *(report.filtered for report in reports)]),
        tokenizer=plan.tokenizer,
        precision=plan.precision,
        preprocessing=plan.preprocessing,
        options=plan.options,
        filters=plan.filters,
        images_left_out=total([report.images_left_out for report in reports]),
    )


def _path(out: Path, shard: int) -> Path:
    return out / STATE_DIRECTORY / f"shard-{shard:06d}.json"


def _load(path: Path) -> ShardReport | None:
    """Return a report, or None if it is missing, damaged or of another version."""
    try:
        content: dict[str, Any] = parse_json(read_text(path))
        file = ShardFile.from_dict(content.pop("file"))
        skipped = tuple(SkippedSample(**sample) for sample in content.pop("skipped"))
        return ShardReport(file=file, skipped=skipped, **content)
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _is_intact(path: Path, file: ShardFile) -> bool:
    return path.is_file() and path.stat().st_size == file.bytes

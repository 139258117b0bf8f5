"""Build shards from foreign formats: resumable, and byte for byte the same however it is interrupted or divided.

OUT/shard-000000.array_record ...   the records
OUT/manifest.json                   written last: a directory with it is complete
OUT/bad.jsonl                       what was left out, and why
OUT/build/                          the plan, a lock, and while it runs a report for every finished shard
"""

import contextlib
import dataclasses
import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from seed_jax.data.build import plan as plans
from seed_jax.data.build import reports
from seed_jax.data.build.encoding import Encoder, Prepared, to_records
from seed_jax.data.build.filters import Filtered
from seed_jax.data.build.plan import Plan
from seed_jax.data.build.preprocess import prepare
from seed_jax.data.build.reports import BAD_LOG, STATE, Report
from seed_jax.data.build.settings import Settings
from seed_jax.data.shards.manifest import MANIFEST, Manifest
from seed_jax.data.shards.records import Item, Record, encode
from seed_jax.data.shards.shards import shard_name, write_shard
from seed_jax.data.sources import Bad, Raw, Source
from seed_jax.errors import UserError
from seed_jax.files import locked


def build(
    source: Source, out: str | Path, *, encoder: Encoder | None = None, settings: Settings | None = None
) -> Manifest | None:
    """Build, or go on building, the shards of `source` in `out`.

    Args:
        encoder: turns pictures into codes; without one the encoded pictures themselves are stored.

    Returns:
        The manifest; None where other shares are not finished yet.

    Raises:
        UserError: another build is writing there, other settings were used before, or too many records are bad.
    """
    out, settings = Path(out), settings or Settings()
    state, share = out / STATE, settings.share
    if out.exists() and not state.is_dir() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is no build of shards: choose another --out, or remove it.")
    state.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as locks:
        # Shares may be made at the same time, but not beside a build that makes everything.
        locks.enter_context(locked(state / "lock", str(out), shared=share.count > 1))
        if share.count > 1:
            locks.enter_context(locked(state / f"lock-{share.index}-of-{share.count}", str(out)))
        plan = _plan(source, out, encoder, settings)
        if not (out / MANIFEST).is_file():
            _Builder(source, out, plan, encoder, settings).run()
        return reports.finish(out, plan)


def _plan(source: Source, out: Path, encoder: Encoder | None, settings: Settings) -> Plan:
    """Return the plan in `out` if it fits; make a new one where nothing has been built yet."""
    # One at a time, also of several shares: the first one counts the input and the others find the numbers.
    with locked(out / STATE / "lock-plan", str(out), wait=True):
        old = plans.load(out / STATE)
        new = plans.make_plan(
            source,
            old,
            shard_size=settings.shard_size,
            batch_size=encoder.batch_size if encoder else 0,
            tokenizer=encoder.fingerprint if encoder else None,
            preprocessing=encoder.preprocessing if encoder else None,
            filters=settings.filters.settings(),
        )
        if old and ((out / MANIFEST).is_file() or any((out / STATE).glob("shard-*.json"))):
            plans.check_same(old, new, out)
        elif old != new:
            # Shards of the old plan that were written but not yet reported would stay for ever.
            for leftover in out.glob("*shard-*.array_record*") if old else ():
                leftover.unlink()
            plans.save(out / STATE, new)
        return new


class _Builder:
    """Makes the shards of one share."""

    def __init__(self, source: Source, out: Path, plan: Plan, encoder: Encoder | None, settings: Settings):
        self.source, self.out, self.plan, self.encoder, self.settings = source, out, plan, encoder, settings
        finished = reports.load_all(out, plan)
        self.bad = sum(len(report.bad) for report in finished.values())
        own = settings.share.of(plan.shards)
        self.todo = [shard for shard in own if shard not in finished]
        units = [sum(len(plan.shard_range(shard)) for shard in shards) for shards in (own, self.todo)]
        self.bar = tqdm(
            total=units[0], initial=units[0] - units[1], unit=" records", disable=None if settings.progress else True
        )

    def run(self) -> None:
        """Read in one thread, decode in several, and meanwhile encode in this one."""
        pool, reader = ThreadPoolExecutor(self.settings.workers), ThreadPoolExecutor(1)
        window = 2 * max(self.plan.batch_size, self.settings.workers)
        try:
            with self.bar:
                for run in _runs(self.todo):
                    units = self._read(self.plan.shard_range(run[0]).start, self.plan.shard_range(run[-1]).stop)
                    prepared = in_order(pool, self._prepare, read_ahead(reader, units, window), window)
                    for shard in run:
                        self._build_shard(shard, prepared)
        finally:
            reader.shutdown(wait=True, cancel_futures=True)
            pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, unit: Raw | Bad) -> Prepared | Bad | Filtered:
        return prepare(unit, self.encoder, self.settings.filters)

    def _read(self, start: int, stop: int) -> Iterator[Raw | Bad]:
        files = {file.name: file for file in self.source.files}
        for name, first, end in self.plan.stretches(start, stop):
            count = 0
            try:
                for unit in self.source.read(files[name], first, end):
                    count += 1
                    yield unit
            except OSError as error:
                raise UserError(f"Cannot read {files[name].path}: {error.strerror or error}.") from error
            if count != end - first:
                raise UserError(f"{files[name].path} has changed during the build: remove {self.out} and build anew.")

    def _build_shard(self, shard: int, prepared: Iterator[Prepared | Bad | Filtered]) -> None:
        left = _Left()
        items: Counter[str] = Counter()
        units = self._usable(itertools.islice(prepared, len(self.plan.shard_range(shard))), left)
        records = to_records(units, self.encoder, self.source.kind)
        file = write_shard(self.out / shard_name(shard), _counted(records, items))
        report = Report(file, dict(items), tuple(left.bad), dict(left.filtered), dict(left.pictures))
        reports.save(self.out, shard, report)

    def _usable(self, units: Iterable[Prepared | Bad | Filtered], left: "_Left") -> Iterator[Prepared]:
        """Pass on what is neither bad nor filtered; stop the build when too much is bad."""
        for unit in units:
            self.bar.update()
            if isinstance(unit, Prepared):
                left.pictures.update(unit.left_out)
                yield unit
            elif isinstance(unit, Filtered):
                left.filtered[unit.reason] += 1
            else:
                left.bad.append(unit)
                self.bad += 1
                if self.bad > self.settings.max_bad.allowed(self.plan.units):
                    self._stop(left.bad)

    def _stop(self, bad: list[Bad]) -> None:
        log = [each for report in reports.load_all(self.out, self.plan).values() for each in report.bad] + bad
        reports.write_log(self.out, log)
        reason, count = Counter(each.reason for each in log).most_common(1)[0]
        raise UserError(
            f"{self.bad} of {self.plan.units} records are bad, more than --max-bad allows (most often, {count} times: "
            f"{reason}); see {self.out / BAD_LOG}, then repair the input or raise --max-bad and run again."
        )


@dataclasses.dataclass
class _Left:
    """What a shard is without."""

    bad: list[Bad] = dataclasses.field(default_factory=list)
    filtered: Counter[str] = dataclasses.field(default_factory=Counter)
    pictures: Counter[str] = dataclasses.field(default_factory=Counter)


def _counted(records: Iterable[Record], items: Counter[str]) -> Iterator[bytes]:
    for record in records:
        items.update(map(_kind, record.items))
        yield encode(record)


def _kind(item: Item) -> str:
    return "codes" if isinstance(item, np.ndarray) else "texts" if isinstance(item, str) else "images"


def _runs(shards: list[int]) -> Iterator[list[int]]:
    """Group consecutive numbers, so that an input file is read on and not from its beginning."""
    for _, run in itertools.groupby(enumerate(shards), lambda place: place[1] - place[0]):
        yield [shard for _, shard in run]


T, R = TypeVar("T"), TypeVar("R")
_END: Any = object()


def in_order(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], window: int) -> Iterator[R]:
    """Map in parallel, results in order, never more than `window` of them ahead of the consumer."""
    ahead: deque[Any] = deque()
    for item in items:
        ahead.append(pool.submit(work, item))
        if len(ahead) >= window:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()


def read_ahead(reader: ThreadPoolExecutor, items: Iterable[T], window: int) -> Iterator[T]:
    """Take items in the one thread of `reader`, up to `window` of them ahead of the consumer."""
    iterator = iter(items)
    for item in in_order(reader, lambda _: next(iterator, _END), itertools.repeat(None), window):
        if item is _END:
            return
        yield item

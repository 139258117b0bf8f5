"""Build shards from foreign formats: resumable, and byte-identical however the build is interrupted or divided.

OUT/shard-000000.array_record ...   the records
OUT/manifest.json                   written last: a directory with it is complete
OUT/bad.jsonl                       skipped samples with their reasons
OUT/build/                          the plan, locks, and during the build one report per finished shard
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
from seed_jax.data.build.encoding import ImageEncoder, PreparedSample, to_records
from seed_jax.data.build.filters import FilteredSample
from seed_jax.data.build.options import BuildOptions
from seed_jax.data.build.plan import BuildPlan
from seed_jax.data.build.preprocess import prepare
from seed_jax.data.build.reports import SKIPPED_LOG, STATE_DIRECTORY, ShardReport
from seed_jax.data.shards.manifest import MANIFEST, Manifest
from seed_jax.data.shards.records import Item, Record, encode
from seed_jax.data.shards.shards import shard_name, write_shard
from seed_jax.data.sources import RawSample, SkippedSample, Source
from seed_jax.errors import UserError
from seed_jax.files import locked


def build(
    source: Source, out: str | Path, *, encoder: ImageEncoder | None = None, options: BuildOptions | None = None
) -> Manifest | None:
    """Build the shards of `source` in `out`, or resume an interrupted build.

        source = open_source("webdataset", ["laion/"])
        manifest = build(source, "shards/laion", encoder=encoder)

    Args:
        source: the input samples.
        out: the shard directory; new, empty, or the directory of the same build.
        encoder: tokenizes images; without one the encoded image files themselves are stored.
        options: shard size, workers, filters, share; defaults to `BuildOptions()`.

    Returns:
        The manifest, or None while the shards of other shares are missing.

    Raises:
        UserError: another build is writing to `out`, `out` was built with other options, or too many samples are
            unusable.
    """
    out = Path(out)
    options = options or BuildOptions()
    state = out / STATE_DIRECTORY
    share = options.share
    if out.exists() and not state.is_dir() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not a shard directory: choose another --out or delete it.")
    state.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as locks:
        # Several shares may be built at the same time, but not beside a build of all shards.
        locks.enter_context(locked(state / "lock", str(out), shared=share.count > 1))
        if share.count > 1:
            locks.enter_context(locked(state / f"lock-{share.index}-of-{share.count}", str(out)))
        plan = _load_or_make_plan(source, out, encoder, options)
        if not (out / MANIFEST).is_file():
            _ShareBuilder(source, out, plan, encoder, options).run()
        return reports.finish(out, plan)


def _load_or_make_plan(source: Source, out: Path, encoder: ImageEncoder | None, options: BuildOptions) -> BuildPlan:
    """Return the plan stored in `out` after checking it, or store a new one if no shard is finished."""
    # Exclusive over all shares: the first one counts the input, the others read its counts.
    with locked(out / STATE_DIRECTORY / "lock-plan", str(out), wait=True):
        old = plans.load(out / STATE_DIRECTORY)
        new = plans.make_plan(
            source,
            old,
            shard_size=options.shard_size,
            batch_size=encoder.batch_size if encoder else 0,
            tokenizer=encoder.fingerprint if encoder else None,
            precision=encoder.precision if encoder else None,
            preprocessing=encoder.preprocessing if encoder else None,
            filters=options.filters.as_dict(),
        )
        if old and ((out / MANIFEST).is_file() or any((out / STATE_DIRECTORY).glob("shard-*.json"))):
            plans.check_same(old, new, out)
        elif old != new:
            # Delete shards of the old plan that were written but not yet reported.
            for leftover in out.glob("*shard-*.array_record*") if old else ():
                leftover.unlink()
            plans.save(out / STATE_DIRECTORY, new)
        return new


class _ShareBuilder:
    """Builds the unfinished shards of one share."""

    def __init__(self, source: Source, out: Path, plan: BuildPlan, encoder: ImageEncoder | None, options: BuildOptions):
        self.source = source
        self.out = out
        self.plan = plan
        self.encoder = encoder
        self.options = options
        finished = reports.load_all(out, plan)
        self.num_skipped = sum(len(report.skipped) for report in finished.values())
        own = options.share.shards_of(plan.num_shards)
        self.todo = [shard for shard in own if shard not in finished]
        total = sum(len(plan.shard_range(shard)) for shard in own)
        remaining = sum(len(plan.shard_range(shard)) for shard in self.todo)
        self.progress = tqdm(
            total=total, initial=total - remaining, unit=" samples", disable=None if options.progress else True
        )

    def run(self) -> None:
        """Read in one thread, decode in several, and encode in the calling thread at the same time."""
        pool = ThreadPoolExecutor(self.options.workers)
        reader = ThreadPoolExecutor(1)
        window = 2 * max(self.plan.batch_size, self.options.workers)
        try:
            with self.progress:
                for run in _consecutive_runs(self.todo):
                    start, stop = self.plan.shard_range(run[0]).start, self.plan.shard_range(run[-1]).stop
                    samples = read_ahead(reader, self._read(start, stop), window)
                    prepared = map_in_order(pool, self._prepare, samples, window)
                    for shard in run:
                        self._build_shard(shard, prepared)
        finally:
            reader.shutdown(wait=True, cancel_futures=True)
            pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, sample: RawSample | SkippedSample) -> PreparedSample | SkippedSample | FilteredSample:
        return prepare(sample, self.encoder, self.options.filters)

    def _read(self, start: int, stop: int) -> Iterator[RawSample | SkippedSample]:
        files = {file.name: file for file in self.source.files}
        for name, first, end in self.plan.file_ranges(start, stop):
            count = 0
            try:
                for sample in self.source.read(files[name], first, end):
                    count += 1
                    yield sample
            except OSError as error:
                raise UserError(f"Cannot read {files[name].path}: {error.strerror or error}.") from error
            if count != end - first:
                raise UserError(
                    f"{files[name].path} changed during the build: delete {self.out} and run the command again."
                )

    def _build_shard(self, shard: int, prepared: Iterator[PreparedSample | SkippedSample | FilteredSample]) -> None:
        losses = _Losses()
        items: Counter[str] = Counter()
        samples = self._usable(itertools.islice(prepared, len(self.plan.shard_range(shard))), losses)
        records = to_records(samples, self.encoder, self.source.kind)
        file = write_shard(self.out / shard_name(shard), _encode_and_count(records, items))
        report = ShardReport(
            file, dict(items), tuple(losses.skipped), dict(losses.filtered), dict(losses.images_left_out)
        )
        reports.save(self.out, shard, report)

    def _usable(
        self, samples: Iterable[PreparedSample | SkippedSample | FilteredSample], losses: "_Losses"
    ) -> Iterator[PreparedSample]:
        """Yield the usable samples and count the others; stop the build when too many are unusable."""
        for sample in samples:
            self.progress.update()
            if isinstance(sample, PreparedSample):
                losses.images_left_out.update(sample.left_out)
                yield sample
            elif isinstance(sample, FilteredSample):
                losses.filtered[sample.reason] += 1
            else:
                losses.skipped.append(sample)
                self.num_skipped += 1
                if self.num_skipped > self.options.max_skipped.allowed(self.plan.num_samples):
                    self._stop(losses.skipped)

    def _stop(self, skipped: list[SkippedSample]) -> None:
        log = [sample for report in reports.load_all(self.out, self.plan).values() for sample in report.skipped]
        log += skipped
        reports.write_log(self.out, log)
        reason, count = Counter(sample.reason for sample in log).most_common(1)[0]
        raise UserError(
            f"{self.num_skipped} of {self.plan.num_samples} input samples are unusable, more than --max-bad allows "
            f"(most frequent reason, {count} times: {reason}): see {self.out / SKIPPED_LOG}, repair the input or "
            "raise --max-bad, and run the command again."
        )


@dataclasses.dataclass
class _Losses:
    """Samples and images that are missing from a shard."""

    skipped: list[SkippedSample] = dataclasses.field(default_factory=list)
    filtered: Counter[str] = dataclasses.field(default_factory=Counter)
    images_left_out: Counter[str] = dataclasses.field(default_factory=Counter)


def _encode_and_count(records: Iterable[Record], items: Counter[str]) -> Iterator[bytes]:
    for record in records:
        items.update(map(_item_kind, record.items))
        yield encode(record)


def _item_kind(item: Item) -> str:
    return "codes" if isinstance(item, np.ndarray) else "texts" if isinstance(item, str) else "images"


def _consecutive_runs(shards: list[int]) -> Iterator[list[int]]:
    """Group consecutive shard numbers, so that input files are read on instead of from their beginning."""
    for _, run in itertools.groupby(enumerate(shards), lambda numbered: numbered[1] - numbered[0]):
        yield [shard for _, shard in run]


T = TypeVar("T")
R = TypeVar("R")
_END: Any = object()


def map_in_order(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], window: int) -> Iterator[R]:
    """Map in parallel and yield results in order, computing at most `window` items ahead of the consumer."""
    pending: deque[Any] = deque()
    for item in items:
        pending.append(pool.submit(work, item))
        if len(pending) >= window:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def read_ahead(reader: ThreadPoolExecutor, items: Iterable[T], window: int) -> Iterator[T]:
    """Iterate over `items` in the thread of `reader`, at most `window` items ahead of the consumer."""
    iterator = iter(items)

    def take_next(_: None) -> T:
        return next(iterator, _END)

    for item in map_in_order(reader, take_next, itertools.repeat(None), window):
        if item is _END:
            return
        yield item

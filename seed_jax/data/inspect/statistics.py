"""What a mixture is made of, measured on some of its records: lengths, shares, useful tokens, codes."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from seed_jax.data.batches.packed import PackedBatches
from seed_jax.data.batches.packing import packing_stats
from seed_jax.data.batches.record_stream import Part, RecordStream
from seed_jax.data.inspect.code_usage import CodeStats, code_stats
from seed_jax.data.shards.records import Record
from seed_jax.data.shards.shards import JoinedShards, Shards
from seed_jax.data.templates import Sample

PACKED_ROWS = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """A part, measured on `records` of its records, evenly spaced.

    Attributes:
        total: records that the part has.
        texts: characters of each text, int64 [N]; pictures: pictures of each record.
        lengths: tokens of each sample that is kept; trained: tokens of it that are trained. Empty without a template.
        max_length: to how many positions the original would pad a sample; None without a template or a limit.
        dropped: reason -> samples that the template leaves out.
        codes: how often each code is used.
    """

    total: int
    records: int
    texts: np.ndarray
    pictures: np.ndarray
    lengths: np.ndarray
    trained: np.ndarray
    max_length: int | None
    dropped: dict[str, int]
    codes: CodeStats

    @property
    def mean_length(self) -> float:
        """Tokens that a record gives on average."""
        return float(self.lengths.sum()) / max(self.records, 1)

    @property
    def padded_share(self) -> float:
        """Share of useful positions when every sample is padded to `max_length`, as the original does."""
        return float(self.lengths.mean()) / self.max_length if self.max_length and len(self.lengths) else float("nan")


def spaced(total: int, count: int) -> list[int]:
    """Return up to `count` evenly spaced numbers below `total`."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(int)).tolist()


def measure(part: Part, shards: Shards | JoinedShards, count: int, num_codes: int) -> Measured:
    """Read up to `count` records of a part, one at a time, and render them if it has a template."""
    numbers = spaced(len(shards), count)
    texts, pictures, lengths, trained = [], [], [], []
    dropped: Counter[str] = Counter()

    def codes() -> Iterator[np.ndarray]:
        for number in numbers:
            record = shards[number]
            texts.extend(len(item) for item in record.items if isinstance(item, str))
            pictures.append(sum(not isinstance(item, str) for item in record.items))
            for sample in rendered(part, record, number):
                if sample.kept:
                    lengths.append(len(sample))
                    trained.append(int(sample.loss_mask[1:].sum()))
                else:
                    dropped[sample.reason] += 1
            yield from (item for item in record.items if isinstance(item, np.ndarray))

    stats = code_stats(codes(), num_codes)
    options = getattr(getattr(part.render, "task", None), "options", None)
    return Measured(
        total=len(shards),
        records=len(numbers),
        texts=np.array(texts, np.int64),
        pictures=np.array(pictures, np.int64),
        lengths=np.array(lengths, np.int64),
        trained=np.array(trained, np.int64),
        max_length=getattr(options, "max_length", None),
        dropped=dict(dropped),
        codes=stats,
    )


def rendered(part: Part, record: Record, number: int) -> Sequence[Sample]:
    """Return the samples of a record, always the same for the same number; none without a template."""
    if part.render is None:
        return []
    return part.render(record, np.random.Generator(np.random.Philox(key=number)))


@dataclasses.dataclass(frozen=True)
class Useful:
    """Shares of positions that hold a token: packed, and padded as the original pads."""

    packed: float
    padded: float


def useful_shares(parts: Sequence[Part], measured: Sequence[Measured], length: int, seed: int = 0) -> Useful:
    """Pack `PACKED_ROWS` rows of a mixture, and say what padding every sample to its part's `max_length` would give."""
    batches = iter(PackedBatches(RecordStream(endless(parts), seed), rows=PACKED_ROWS, length=length))
    next(batches)  # the first rows have no samples waiting from before
    packed = packing_stats(next(batches)).useful_share
    # Of what a part draws, some records give no sample: the original draws again, hence no padding for those.
    samples = [part.weight * len(each.lengths) / each.records for part, each in zip(parts, measured, strict=True)]
    useful = sum(
        count * each.lengths.mean() for count, each in zip(samples, measured, strict=True) if len(each.lengths)
    )
    positions = sum(count * (each.max_length or length) for count, each in zip(samples, measured, strict=True))
    return Useful(packed, float(useful) / positions if positions else float("nan"))


def endless(parts: Sequence[Part]) -> list[Part]:
    """Return the parts without an end: what is looked at may be small."""
    return [dataclasses.replace(part, cycles=None) for part in parts]


def shares(parts: Sequence[Part], measured: Sequence[Measured]) -> list[tuple[float, float]]:
    """Return each part's share of the samples drawn and of the tokens they give."""
    weights = [part.weight for part in parts]
    tokens = [part.weight * each.mean_length for part, each in zip(parts, measured, strict=True)]
    return [
        (weight / sum(weights), count / sum(tokens) if sum(tokens) else float("nan"))
        for weight, count in zip(weights, tokens, strict=True)
    ]

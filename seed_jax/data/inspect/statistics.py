"""Statistics of a mixture, measured on a subset of its records: lengths, shares, packing efficiency, code usage."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int64

from seed_jax.data.batches.packed import PackedBatches
from seed_jax.data.batches.packing import packing_stats
from seed_jax.data.batches.record_stream import MixtureComponent, RecordStream, evenly_spaced, render_record
from seed_jax.data.inspect.code_usage import CodeStats, code_stats
from seed_jax.data.shards.shards import JoinedShards, Shards
from seed_jax.data.templates.renderer import Renderer

PACKED_ROWS = 64


@dataclasses.dataclass(frozen=True, eq=False)
class ComponentStats:
    """Statistics of a mixture component, measured on evenly spaced records.

    Attributes:
        num_records: records of the component.
        num_measured: records that were measured.
        text_lengths: characters of each text.
        images_per_record: images of each record.
        lengths: tokens of each sample that is kept; empty without a template.
        trained: trained tokens of each sample that is kept; empty without a template.
        max_length: length to which the original pads a sample; None without a template or a limit.
        dropped: reason -> number of samples that the template drops.
        codes: usage of each code.
    """

    num_records: int
    num_measured: int
    text_lengths: Int64[np.ndarray, " texts"]
    images_per_record: Int64[np.ndarray, " records"]
    lengths: Int64[np.ndarray, " samples"]
    trained: Int64[np.ndarray, " samples"]
    max_length: int | None
    dropped: dict[str, int]
    codes: CodeStats

    @property
    def tokens_per_record(self) -> float:
        """Mean number of tokens that a record gives."""
        return float(self.lengths.sum()) / max(self.num_measured, 1)

    @property
    def padded_utilization(self) -> float:
        """Fraction of positions that hold a token when every sample is padded to `max_length`, as in the original."""
        return float(self.lengths.mean()) / self.max_length if self.max_length and len(self.lengths) else float("nan")


def measure(component: MixtureComponent, shards: Shards | JoinedShards, count: int, num_codes: int) -> ComponentStats:
    """Measure up to `count` records of a component, and render them if it has a template.

    Args:
        component: the mixture component.
        shards: its records.
        count: maximum number of records to read.
        num_codes: size of the image codebook.
    """
    numbers = evenly_spaced(len(shards), count)
    text_lengths: list[int] = []
    images_per_record: list[int] = []
    lengths: list[int] = []
    trained: list[int] = []
    dropped: Counter[str] = Counter()

    def codes() -> Iterator[np.ndarray]:
        for number in numbers:
            record = shards[number]
            text_lengths.extend(len(item) for item in record.items if isinstance(item, str))
            images_per_record.append(sum(not isinstance(item, str) for item in record.items))
            for sample in render_record(component, record, number):
                if sample.kept:
                    lengths.append(len(sample))
                    trained.append(int(sample.loss_mask[1:].sum()))
                else:
                    dropped[sample.reason] += 1
            yield from (item for item in record.items if isinstance(item, np.ndarray))

    stats = code_stats(codes(), num_codes)
    render = component.render
    return ComponentStats(
        num_records=len(shards),
        num_measured=len(numbers),
        text_lengths=np.array(text_lengths, np.int64),
        images_per_record=np.array(images_per_record, np.int64),
        lengths=np.array(lengths, np.int64),
        trained=np.array(trained, np.int64),
        max_length=render.template.options.max_length if isinstance(render, Renderer) else None,
        dropped=dict(dropped),
        codes=stats,
    )


@dataclasses.dataclass(frozen=True)
class TokenUtilization:
    """Fraction of positions that hold a token: with packed rows, and with padded samples as in the original."""

    packed: float
    padded: float


def token_utilization(
    components: Sequence[MixtureComponent], stats: Sequence[ComponentStats], length: int, seed: int = 0
) -> TokenUtilization:
    """Measure the utilization of packed rows of a mixture, and compute that of padding to each `max_length`.

    Args:
        components: the mixture, with templates.
        stats: statistics of each component.
        length: tokens of a packed row, and padded length of samples without `max_length`.
        seed: seed of the stream.
    """
    stream = RecordStream(without_end(components), seed)
    batches = iter(PackedBatches(stream, batch_size=PACKED_ROWS, sequence_length=length))
    next(batches)  # the first rows have no pending samples yet
    packed = packing_stats(next(batches)).efficiency
    # Records that give no sample need no padding: the original draws again.
    samples = [
        component.weight * len(measured.lengths) / measured.num_measured
        for component, measured in zip(components, stats, strict=True)
    ]
    tokens = sum(
        count * measured.lengths.mean() for count, measured in zip(samples, stats, strict=True) if len(measured.lengths)
    )
    positions = sum(count * (measured.max_length or length) for count, measured in zip(samples, stats, strict=True))
    return TokenUtilization(packed, float(tokens) / positions if positions else float("nan"))


def without_end(components: Sequence[MixtureComponent]) -> list[MixtureComponent]:
    """Return the components without a limit of epochs: inspected datasets may be small."""
    return [dataclasses.replace(component, cycles=None) for component in components]


@dataclasses.dataclass(frozen=True)
class MixtureShare:
    """A component's share of the samples of a mixture and of their tokens."""

    samples: float
    tokens: float


def mixture_shares(components: Sequence[MixtureComponent], stats: Sequence[ComponentStats]) -> list[MixtureShare]:
    """Return each component's share of the samples and of the tokens."""
    weights = [component.weight for component in components]
    tokens = [
        component.weight * measured.tokens_per_record for component, measured in zip(components, stats, strict=True)
    ]
    return [
        MixtureShare(weight / sum(weights), count / sum(tokens) if sum(tokens) else float("nan"))
        for weight, count in zip(weights, tokens, strict=True)
    ]

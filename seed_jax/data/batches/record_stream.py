"""An unbounded, shuffled stream of records from several shard directories, addressed by sample number.

The stream is a random-access source: any process can read any sample, and the order depends on the seed only. Packed
batches (`packed.py`) read from it, and so do the Grain pipelines that decode images in worker processes (`pairs.py`).
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from seed_jax.data.batches.mixture import Mixture, hash64
from seed_jax.data.shards.records import Record
from seed_jax.data.shards.shards import JoinedShards, Shards, open_shards
from seed_jax.data.templates.sample import RenderedSample
from seed_jax.errors import UserError

Render = Callable[[Record, np.random.Generator], Sequence[RenderedSample]]
"""Turns a record into one sample, or a long document into several; the generator makes the random choices."""

_CHOICES_KEY = (1 << 62) + 1  # distinguishes these keys from those of the order


@dataclasses.dataclass(frozen=True)
class MixtureComponent:
    """A dataset of a mixture.

    Attributes:
        directory: a shard directory, or several that count as one dataset.
        render: the template, or None for streams of plain records.
        weight: share of the samples, in any unit.
        cycles: epochs until the component is exhausted; None for no end.
    """

    directory: str | Path | Sequence[str | Path]
    render: Render | None = None
    weight: float | int = 1
    cycles: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class StreamSample:
    """A sample of the stream.

    Attributes:
        number: sample number.
        component: index of the mixture component.
        index: number of the record in the component.
        record: the record.
        key: seed of the sample's random choices.
    """

    number: int
    component: int
    index: int
    record: Record
    key: int

    def rng(self) -> np.random.Generator:
        """Return the generator of the sample's random choices: a function of seed and sample number."""
        return np.random.Generator(np.random.Philox(key=self.key))


class RecordStream:
    """Mixes datasets by weight and shuffles each anew in every epoch; picklable.

    Args:
        components: the datasets.
        seed: seed of order, shuffling and random choices.
        shuffle: whether to shuffle; without it each dataset keeps its own order.
        tokenizer: fingerprint of the image tokenizer whose codes are expected, or None to accept any.
    """

    def __init__(
        self, components: Sequence[MixtureComponent], seed: int, *, shuffle: bool = True, tokenizer: str | None = None
    ):
        self.components = tuple(components)
        self.seed = seed
        self._shards = open_mixture([component.directory for component in self.components], tokenizer)
        self._mixture = Mixture(
            [len(shards) for shards in self._shards],
            [component.weight for component in self.components],
            seed,
            shuffle=shuffle,
            cycles=[component.cycles for component in self.components],
        )
        self._description: dict[str, int | bool | str] = {
            "seed": seed,
            "shuffle": shuffle,
            "mixture": self._fingerprint(),
        }

    def __len__(self) -> int:
        """Return the number of sample numbers: 2**42 unless all components end."""
        return self._mixture.length

    @property
    def is_finite(self) -> bool:
        """Whether all components end."""
        return all(component.cycles is not None for component in self.components)

    def __getitem__(self, number: int) -> StreamSample:
        sample = next(self.read(np.array([number])), None)
        if sample is None:
            raise IndexError(f"sample {number} does not exist: its mixture component is exhausted")
        return sample

    def read(self, numbers: np.ndarray) -> Iterator[StreamSample]:
        """Read the samples with these numbers (int64 [N]) in order; faster than one by one.

        Empty sample numbers, whose component is exhausted, are skipped.
        """
        locations = self._mixture.locate(numbers)
        keys = hash64(hash64(self.seed, _CHOICES_KEY), numbers)
        columns = (numbers, locations.component, locations.record, keys)
        for number, component, index, key in zip(*(column.tolist() for column in columns), strict=True):
            if component >= 0:
                yield StreamSample(number, component, index, self._shards[component][index], key)

    def describe_location(self, sample: StreamSample) -> str:
        """Name the record, shard and id of a sample, for error messages."""
        shard, index = self._shards[sample.component].locate(sample.index)
        return f"record {index} of {shard} (id {sample.record.id!r})"

    def describe(self) -> dict[str, int | bool | str]:
        """Return what the order of samples depends on, for comparison with a saved position."""
        return dict(self._description)

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for component, shards in zip(self.components, self._shards, strict=True):
            digest.update(repr((component.weight, component.cycles, shards.hashes)).encode())
        return digest.hexdigest()[:16]


def evenly_spaced(total: int, count: int) -> list[int]:
    """Return up to `count` evenly spaced integers below `total`."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(int)).tolist()


def render_record(component: MixtureComponent, record: Record, number: int) -> Sequence[RenderedSample]:
    """Return the samples of a record outside a stream, the same for the same number; none without a template."""
    if component.render is None:
        return []
    return component.render(record, np.random.Generator(np.random.Philox(key=number)))


def open_mixture(
    directories: Sequence[str | Path | Sequence[str | Path]], tokenizer: str | None = None
) -> list[Shards | JoinedShards]:
    """Open the shards of all components of a mixture.

    Args:
        directories: per component, one shard directory or several.
        tokenizer: fingerprint of the expected image tokenizer, or None to accept any.

    Raises:
        UserError: any directory is unusable; one error lists all problems.
    """
    if not directories:
        raise UserError("A mixture needs at least one component: name a shard directory.")
    opened: list[Shards | JoinedShards] = []
    problems = []
    for component in directories:
        shards = []
        for directory in [component] if isinstance(component, str | Path) else component:
            try:
                shards.append(open_shards(directory, tokenizer))
            except UserError as error:
                problems.append(str(error))
        opened.append(shards[0] if len(shards) == 1 else JoinedShards(shards))
    if len(problems) > 1:
        raise UserError(
            f"{len(problems)} shard directories of a mixture of {len(directories)} components cannot be used: "
            f"{' '.join(problems)}"
        )
    if problems:
        raise UserError(problems[0])
    return opened

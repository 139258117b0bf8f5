"""An endless stream of records from several shard directories, by sample number.

It is a random-access source: any process can ask for any sample, so the order depends on the seed and on nothing else.
Packed batches (`pipeline.py`) draw from it, and so can a Grain pipeline that decodes pictures in worker processes.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from seed_jax.data.batches.mixture import Mixture, hashed
from seed_jax.data.batches.packing import Sample
from seed_jax.data.shards.records import Record
from seed_jax.data.shards.shards import JoinedShards, Shards, open_shards
from seed_jax.errors import UserError

Render = Callable[[Record, np.random.Generator], Sequence[Sample]]
"""A template: turns a record into one sample, or a long document into several, with random choices from the generator.
"""


@dataclasses.dataclass(frozen=True)
class Part:
    """A directory of shards in a mixture, or several that count as one.

    Attributes:
        weight: its share of the samples, in any unit.
        cycles: how often each of its records comes; None for no end.
    """

    directory: str | Path | Sequence[str | Path]
    render: Render | None = None
    weight: float | int = 1
    cycles: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
    """Sample `number` of the stream: its record, and the part and place it comes from."""

    number: int
    part: int
    place: int
    record: Record
    key: int

    def rng(self) -> np.random.Generator:
        """Return the generator for the random choices this sample needs: always the same for the same number."""
        return np.random.Generator(np.random.Philox(key=self.key))


class RecordStream:
    """Mix parts by weight and shuffle each anew in every epoch; can be pickled.

    Args:
        tokenizer: fingerprint of the image tokenizer whose codes are expected, or None to take any.
        shuffle: without it, each part comes in its own order.
    """

    def __init__(self, parts: Sequence[Part], seed: int, *, shuffle: bool = True, tokenizer: str | None = None):
        self.parts, self.seed = tuple(parts), seed
        self._shards = open_all([part.directory for part in self.parts], tokenizer)
        self._mixture = Mixture(
            [len(part) for part in self._shards],
            [part.weight for part in self.parts],
            seed,
            shuffle=shuffle,
            cycles=[part.cycles for part in self.parts],
        )
        self._described = {"seed": seed, "shuffle": shuffle, "parts": self._fingerprint()}

    def __len__(self) -> int:
        """Return how many sample numbers there are: very many, unless all parts have an end."""
        return self._mixture.length

    def __getitem__(self, number: int) -> Drawn:
        drawn = next(self.draw(np.array([number])), None)
        if drawn is None:
            raise IndexError(f"there is no sample {number}: the part that it would be of is used up")
        return drawn

    def draw(self, numbers: np.ndarray) -> Iterator[Drawn]:
        """Read the samples with these numbers (int64 [N]) one after the other; cheaper than one by one.

        Numbers without a sample, since a part is used up, are left out.
        """
        places, keys = self._mixture.places(numbers), hashed(hashed(self.seed, _CHOICES), numbers)
        columns = (numbers, places.part, places.record, keys)
        for number, part, place, key in zip(*(column.tolist() for column in columns), strict=True):
            if part >= 0:
                yield Drawn(number, part, place, self._shards[part][place], key)

    def where(self, drawn: Drawn) -> str:
        """Name the place of a sample, for error messages."""
        shard, place = self._shards[drawn.part].locate(drawn.place)
        return f"record {place} of {shard} (id {drawn.record.id!r})"

    def describe(self) -> dict[str, int | bool | str]:
        """Return what the order of samples depends on, for comparison with a saved position."""
        return dict(self._described)

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for part, shards in zip(self.parts, self._shards, strict=True):
            digest.update(repr((part.weight, part.cycles, shards.hashes)).encode())
        return digest.hexdigest()[:16]


_CHOICES = (1 << 62) + 1  # tells these keys from those of the order


def open_all(
    directories: Sequence[str | Path | Sequence[str | Path]], tokenizer: str | None = None
) -> list[Shards | JoinedShards]:
    """Open the shards of all parts of a mixture; one UserError names everything that is wrong with any of them."""
    if not directories:
        raise UserError("A mixture needs at least one part: name a directory of shards.")
    opened, problems = [], []
    for each in directories:
        several = [each] if isinstance(each, str | Path) else list(each)
        shards = []
        for directory in several:
            try:
                shards.append(open_shards(directory, tokenizer))
            except UserError as error:
                problems.append(str(error))
        opened.append(shards[0] if len(shards) == 1 else JoinedShards(shards))
    if len(problems) > 1:
        raise UserError(
            f"{len(problems)} of the directories of a mixture of {len(directories)} parts cannot be used: "
            f"{' '.join(problems)}"
        )
    if problems:
        raise UserError(problems[0])
    return opened

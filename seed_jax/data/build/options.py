"""Options of a build that do not follow from its inputs."""

import dataclasses
import os

from seed_jax.data.build.filters import ImageFilters
from seed_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SkipLimit:
    """How many samples may be unusable before the build stops: a fraction of all samples or a number."""

    fraction: float = 0.0
    number: int = 0

    @classmethod
    def parse(cls, text: str) -> "SkipLimit":
        """Parse the value of --max-bad: "1%", "0.01" or "25"."""
        try:
            if text.endswith("%"):
                limit = cls(fraction=float(text[:-1]) / 100)
            else:
                limit = cls(fraction=float(text)) if "." in text else cls(number=int(text))
        except ValueError:
            limit = cls(fraction=-1.0)
        if not 0 <= limit.fraction <= 1 or limit.number < 0:
            raise UserError(
                f"--max-bad {text!r} is not a limit: expected a percentage such as 1% or a number such as 25."
            )
        return limit

    def allowed(self, num_samples: int) -> int:
        """Return the number of unusable samples allowed among `num_samples`."""
        return max(self.number, int(self.fraction * num_samples))


@dataclasses.dataclass(frozen=True)
class Share:
    """The share of the shards that this process builds: share `index` of `count`."""

    index: int = 0
    count: int = 1

    def __post_init__(self):
        if not 0 <= self.index < self.count:
            raise UserError(
                f"Share {self.index} of {self.count} does not exist: shares are counted from 0, as in 0/4 to 3/4."
            )

    def shards_of(self, num_shards: int) -> range:
        """Return the numbers of the shards in this share."""
        return range(num_shards * self.index // self.count, num_shards * (self.index + 1) // self.count)


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """Options of `build`; only `shard_size` and `filters` change the bytes that are written.

    Attributes:
        shard_size: input samples per shard.
        workers: threads that decode images.
        max_skipped: how many unusable samples are tolerated.
        share: the shards that this process builds.
        progress: whether to show a progress bar on a terminal.
        filters: image filters.
    """

    shard_size: int = 8192
    workers: int = dataclasses.field(default_factory=lambda: os.cpu_count() or 1)
    max_skipped: SkipLimit = SkipLimit(fraction=0.01)
    share: Share = Share()
    progress: bool = True
    filters: ImageFilters = ImageFilters()

    def __post_init__(self):
        if self.shard_size < 1 or self.workers < 1:
            raise UserError(f"Shard size {self.shard_size} and workers {self.workers} must be at least 1.")

"""Settings of a build that do not follow from its inputs."""

import dataclasses
import os

from seed_jax.data.build.filters import Filters
from seed_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class BadLimit:
    """How many records may be bad: a share of all or a number, from "1%", "0.01" or "25"."""

    share: float = 0.0
    number: int = 0

    @classmethod
    def parse(cls, text: str) -> "BadLimit":
        try:
            if text.endswith("%"):
                limit = cls(share=float(text[:-1]) / 100)
            else:
                limit = cls(share=float(text)) if "." in text else cls(number=int(text))
        except ValueError:
            limit = cls(share=-1.0)
        if not 0 <= limit.share <= 1 or limit.number < 0:
            raise UserError(f"--max-bad {text!r} is no limit: expected a share such as 1% or a number such as 25.")
        return limit

    def allowed(self, units: int) -> int:
        return max(self.number, int(self.share * units))


@dataclasses.dataclass(frozen=True)
class Share:
    """Which part of the shards this process makes: `index` of `count` processes."""

    index: int = 0
    count: int = 1

    def __post_init__(self):
        if not 0 <= self.index < self.count:
            raise UserError(f"Share {self.index} of {self.count} does not exist: count from 0, as in 0/4 to 3/4.")

    def of(self, shards: int) -> range:
        return range(shards * self.index // self.count, shards * (self.index + 1) // self.count)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a build that do not follow from its inputs; `shard_size` and `filters` change what is written."""

    shard_size: int = 8192
    workers: int = dataclasses.field(default_factory=lambda: os.cpu_count() or 1)
    max_bad: BadLimit = BadLimit(share=0.01)
    share: Share = Share()
    progress: bool = True
    filters: Filters = Filters()

    def __post_init__(self):
        if self.shard_size < 1 or self.workers < 1:
            raise UserError(f"Shard size {self.shard_size} and workers {self.workers} must be at least 1.")
